"""Parameters are bound by type: each to the nearest producer upstream."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from types import GenericAlias
from typing import Any, get_args, get_origin

from schemas import Event
from service.core.errors import WiringError
from workers.compiler.plan import (
    AFTER,
    EVENT,
    ITEM,
    RUN,
    BoundEach,
    BoundNode,
    BoundParallel,
    BoundRoute,
    Free,
    Part,
    Plan,
)
from workers.kit.flow import OTHERWISE, Each, Element, Flow, Node, Parallel, Route, where
from workers.kit.resources import Open, given_by
from workers.kit.run import Run
from workers.kit.scope import Branches, Producer, Scope, Siblings, fits, gifts, named, nearest, nearness, optional
from workers.kit.settings import SettingsSlot, slot_of
from workers.kit.signature import check_at_once, check_labels, hints_of, returns
from workers.kit.state import Taken, taken


def bind(flow: Flow, event: type[Event], resources: Sequence[Open] = (), after_type: Any = None) -> Plan:
    """Compile a flow, of a follow-up where there is an `after_type`.

    Raises WiringError with node, parameter and the nearest fix.
    """
    names = _Names({f"the resource {where(resource)}": resource for resource in resources})
    opened = tuple((Producer(name, given_by(resource)),) for name, resource in names.resources.items())
    plan, _ = _bind(flow, (Siblings(opened), *_outset(event, after_type)), "", names)
    return plan


def bind_body(body: Node, event: type[Event], after_type: Any) -> Free:
    """The free form of a follow-up: its parameters are bound like a node's."""
    return Free(body, _bound(body, _outset(event, after_type), "", _Names({})).takes)


def _outset(event: type[Event], after_type: Any) -> Scope:
    return (Producer(EVENT, event), *(() if after_type is None else (Producer(AFTER, after_type),)))


class _Names:
    """Step keys: the node's name, behind the branch it stands in; numbered where it stands there twice."""

    def __init__(self, resources: Mapping[str, Open]) -> None:
        self.resources = resources
        self._seen: dict[str, int] = {}

    def of(self, node: Node, path: str) -> str:
        step_key = f"{path}{node.__name__}"
        self._seen[step_key] = self._seen.get(step_key, 0) + 1
        return step_key if self._seen[step_key] == 1 else f"{step_key}#{self._seen[step_key]}"


def _bind(flow: Flow, upstream: Scope, path: str, names: _Names) -> tuple[Plan, Scope]:
    """The plan of a flow, and what it gives to those behind it."""
    if not isinstance(flow, list | tuple):
        raise WiringError(f"{where(flow)} stands where a flow is wanted. Write a list of nodes: […].")
    parts: list[Part] = []
    gives: Scope = ()
    for element in flow:
        part, layers = _element(element, (*upstream, *gives), path, names)
        parts.append(part)
        gives = (*gives, *layers)
    return tuple(parts), gives


def _element(element: Element, scope: Scope, path: str, names: _Names) -> tuple[Part, Scope]:
    match element:
        case Parallel():
            return _parallel(element, scope, path, names)
        case Each():
            bound_each = _each(element, scope, path, names)
            gives = returns(element.node)
            list_type = GenericAlias(list, (optional(gives) if element.collect else gives,))
            return bound_each, (Producer(bound_each.bound.step_key, list_type),)
        case Route():
            return _route(element, scope, path, names)
        case list() | tuple():
            raise WiringError(f"{_first(element)} stands in a list of its own. A flow in a flow goes into parallel(…).")
        case _:
            bound = _bound(element, scope, path, names)
            return bound, (Producer(bound.step_key, returns(element)),)


def _parallel(element: Parallel, scope: Scope, path: str, names: _Names) -> tuple[Part, Scope]:
    if not element.members:
        raise WiringError("parallel() has no member. Name the nodes that it runs, or take it away.")
    check_at_once(f"parallel({_first(element.members)}, …)", element.at_once)
    flows: list[Any] = [member if isinstance(member, list | tuple) else [member] for member in element.members]
    bound = [_bind(flow, scope, path, names) for flow in flows]
    plans, scopes = zip(*bound, strict=True)
    return BoundParallel(plans, element.at_once, element.collect), (Siblings(scopes, element.collect),)


def _first(members: Any) -> str:
    """The first node in it, to say which list or `parallel` is meant."""
    match members:
        case list() | tuple():
            return _first(members[0]) if members else "an empty list"
        case Parallel():
            return _first(members.members)
        case Each():
            return where(members.node)
        case Route():
            return where(members.router)
        case _:
            return where(members)


def _route(element: Route, scope: Scope, path: str, names: _Names) -> tuple[Part, Scope]:
    router = _bound(element.router, scope, path, names)
    check_labels(element)
    label = Producer(router.step_key, returns(element.router))
    branches = dict(element.branches) | ({OTHERWISE: element.otherwise} if element.otherwise is not None else {})
    bound = {name: _bind(branch, (*scope, label), f"{path}{name}/", names) for name, branch in branches.items()}
    plans = {name: plan for name, (plan, _) in bound.items()}
    otherwise = plans.pop(OTHERWISE, None) if element.otherwise is not None else None
    out = Branches(router.step_key, {name: gives for name, (_, gives) in bound.items()}, {})
    return BoundRoute(router, plans, otherwise, out.gives), (label, out)


def _bound(node: Node, scope: Scope, path: str, names: _Names) -> BoundNode:
    hints = hints_of(node)
    step_key = names.of(node, path)
    takes = tuple(_source(node, parameter, hints, scope) for parameter in inspect.signature(node).parameters.values())
    sources = [(index, source) for index, source in enumerate(takes) if isinstance(source, str)]
    uses = tuple((index, names.resources[name]) for index, name in sources if name in names.resources)
    return BoundNode(step_key, node, takes, uses)


def _each(element: Each, scope: Scope, path: str, names: _Names) -> BoundEach:
    """The item's parameter is the one of whose type there is a list; of several, that with the nearest list."""
    hints = hints_of(element.node)
    check_at_once(f"each({where(element.node)})", element.at_once)
    wanted = {name: GenericAlias(list, (kind,)) for name, kind in hints.items() if name != "return"}
    lists = [(nearness(scope, kind), name) for name, kind in wanted.items() if len(nearest(scope, kind)) == 1]
    if not lists:
        raise WiringError(
            f"{where(element.node)} is run for each item of a list, and nothing upstream gives a list of what it "
            "takes. Put a node before it that returns list[…] of the type of one of its parameters."
        )
    name = max(lists, key=lambda candidate: candidate[0])[1]
    bound = _bound(element.node, (*scope, Producer(ITEM, hints[name])), path, names)
    return BoundEach(bound, nearest(scope, wanted[name])[0].name, element.at_once, element.collect)


def _source(
    node: Node, parameter: inspect.Parameter, hints: Mapping[str, Any], scope: Scope
) -> str | Taken | SettingsSlot:
    name, wanted = parameter.name, hints.get(parameter.name)
    if parameter.kind not in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
        raise WiringError(f"{where(node)}: parameter `{parameter}` takes no argument by its place. Write it plainly.")
    if wanted is None:
        raise WiringError(f"{where(node)}: parameter `{name}` has no type. Annotate it: parameters are bound by type.")
    if wanted is Run:
        return RUN
    if (settings := slot_of(wanted)) is not None:
        return settings
    if (state := taken(wanted, f"{where(node)}: parameter `{name}`")) is not None:
        return state
    producers = nearest(scope, wanted)
    if not producers:
        raise WiringError(_nothing_gives(node, name, wanted, scope))
    if len(producers) > 1:
        both = " and ".join(producer.name for producer in producers)
        raise WiringError(
            f"{where(node)}: parameter `{name}: {named(wanted)}` could be what {both} give, "
            "and neither is nearer than the other. Give one of them a type of its own."
        )
    return producers[0].name


def _nothing_gives(node: Node, name: str, wanted: Any, scope: Scope) -> str:
    there = ", ".join(f"{named(kind)} (from {producer})" for producer, kind in gifts(scope))
    fix = f"Put a node that returns {named(wanted)} before it, or change the parameter's type."
    for loose in _loosened(wanted):
        if maybe := [producer for producer, kind in gifts(scope) if fits(kind, loose)]:
            fix = f"What {maybe[-1]} gives may be missing: ask for `{name}: {named(loose)}`."
    return f"{where(node)}: nothing upstream gives parameter `{name}: {named(wanted)}`. There is: {there}. {fix}"


def _loosened(wanted: Any) -> Iterator[Any]:
    """What a node asks for where what it takes may be None: after `collect`, or a node that says so."""
    yield optional(wanted)
    if get_origin(wanted) is list:
        yield GenericAlias(list, (optional(get_args(wanted)[0]),))
