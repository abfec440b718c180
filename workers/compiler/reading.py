"""Reading a plan: its nodes, the states they take, and what it gives in the end."""

from collections.abc import Iterator, Mapping
from types import GenericAlias, NoneType
from typing import Any, get_args, get_type_hints

from msgspec import Struct

from service.core.errors import WiringError
from workers.compiler.plan import BoundEach, BoundNode, BoundParallel, BoundRoute, Free, Plan
from workers.kit.flow import Stop
from workers.kit.scope import optional
from workers.kit.signature import returned
from workers.kit.state import Taken


def states(plan: Plan) -> dict[str, type[Struct]]:
    """The states that its nodes take, by name. Raises WiringError where two steps could have one at the same time."""
    kinds: dict[str, type[Struct]] = {}
    _check(plan)
    for bound in bounds(plan):
        merge(kinds, {taken.kind.__name__: taken.kind for taken in _takes(bound)})
    return kinds


def merge(known: dict[str, type[Struct]], more: Mapping[str, type[Struct]]) -> None:
    """What is stored is found by the Struct's name. Raises WiringError where two have one."""
    for name, kind in more.items():
        other = known.setdefault(name, kind)
        if other is not kind:
            raise WiringError(f"{other.__module__} and {kind.__module__} both call a state `{name}`. Rename one.")


def gives(plan: Plan) -> Any:
    """The type of what it gives in the end; None where that is not one type, or a node may stop it with another."""
    if any(_stops(bound) for bound in bounds(plan)):
        return None
    return _last(plan)


def _last(plan: Plan) -> Any:
    match plan[-1] if plan else None:
        case BoundNode(node=node):
            return returned(node)
        case BoundEach(bound=bound, collect=collect):
            return GenericAlias(list, (optional(returned(bound.node)) if collect else returned(bound.node),))
        case Free(body=body):
            return get_type_hints(body).get("return")
        case BoundRoute() as bound_route:
            kinds = [_last(branch) if branch else NoneType for branch in _branches(bound_route)]
            return kinds[0] if all(kind == kinds[0] for kind in kinds) else None
    return None


def _stops(bound: BoundNode) -> bool:
    gives = get_type_hints(bound.node).get("return")
    return gives is Stop or Stop in get_args(gives)


def bounds(plan: Plan) -> Iterator[BoundNode]:
    """Its nodes, under their step keys."""
    for part in plan:
        match part:
            case BoundNode():
                yield part
            case BoundEach():
                yield part.bound
            case BoundParallel():
                yield from (bound for member in part.members for bound in bounds(member))
            case BoundRoute():
                yield part.router
                yield from (bound for branch in _branches(part) for bound in bounds(branch))


def _branches(bound_route: BoundRoute) -> list[Plan]:
    return [*bound_route.branches.values(), *([] if bound_route.otherwise is None else [bound_route.otherwise])]


def _takes(bound: BoundNode) -> list[Taken]:
    return [source for source in bound.takes if isinstance(source, Taken)]


def _check(plan: Plan) -> None:
    for part in plan:
        match part:
            case BoundParallel():
                takers = [first for member in part.members if (first := _taker(member))]
                if len(takers) > 1:
                    raise WiringError(
                        f"{takers[0]} and {takers[1]} stand side by side in one `parallel` and both take a State: "
                        "one step at a time has it. Put one behind the other."
                    )
                for member in part.members:
                    _check(member)
            case BoundEach() if _takes(part.bound):
                raise WiringError(
                    f"{part.bound.step_key} is run for each item of a list and takes a State: one step at a time "
                    "has it. Take it in a node before or behind."
                )
            case BoundRoute():
                for branch in _branches(part):
                    _check(branch)


def _taker(plan: Plan) -> str | None:
    return next((bound.step_key for bound in bounds(plan) if _takes(bound)), None)
