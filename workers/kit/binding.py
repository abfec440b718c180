"""Parameters are bound by type: each to the nearest producer upstream."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from types import GenericAlias, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from msgspec import Struct

from schemas import Event
from service.errors import WiringError
from workers.kit.flow import Each, Element, Flow, Node, Parallel, Route
from workers.kit.plan import EVENT, ITEM, OTHERWISE, RUN, Bound, Choice, Mapped, Part, Plan, Together
from workers.kit.run import Run, returned


class Producer(Struct, frozen=True):
    """A value in scope: `depth` says how near it is, equal for the siblings of one `parallel`."""

    name: str
    gives: Any
    depth: int


Scope = tuple[Producer, ...]


def bind(flow: Flow, event: type[Event]) -> Plan:
    """Compile a flow. Raises WiringError with node, parameter and the nearest fix."""
    names = _Names()
    plan, _ = _bind(flow, (Producer(EVENT, event, 0),), "", names)
    return plan


class _Names:
    """Step keys: the node's name, behind the branch it stands in; numbered where it stands there twice."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def of(self, node: Node, path: str) -> str:
        key = f"{path}{node.__name__}"
        self._seen[key] = self._seen.get(key, 0) + 1
        return key if self._seen[key] == 1 else f"{key}#{self._seen[key]}"


def _bind(flow: Flow, scope: Scope, path: str, names: _Names) -> tuple[Plan, Scope]:
    parts: list[Part] = []
    for element in flow:
        part, given = _element(element, scope, path, names)
        parts.append(part)
        scope = (*scope, *given)
    return tuple(parts), scope


def _element(element: Element, scope: Scope, path: str, names: _Names) -> tuple[Part, Scope]:
    depth = 1 + max(producer.depth for producer in scope)
    match element:
        case Parallel(nodes):
            members = tuple(_bound(node, scope, path, names) for node in nodes)
            return Together(members), tuple(_gives(member, depth) for member in members)
        case Each():
            mapped = _mapped(element, scope, path, names)
            return mapped, (Producer(mapped.bound.key, GenericAlias(list, (_returns(element.node),)), depth),)
        case Route():
            return _route(element, scope, path, names)
        case _:
            bound = _bound(element, scope, path, names)
            return bound, (_gives(bound, depth),)


def _route(element: Route, scope: Scope, path: str, names: _Names) -> tuple[Part, Scope]:
    router = _bound(element.router, scope, path, names)
    _check_labels(router, element)
    depth = 1 + max(producer.depth for producer in scope)
    inner = (*scope, _gives(router, depth))
    branches = dict(element.branches) | ({OTHERWISE: element.otherwise} if element.otherwise is not None else {})
    bound = {label: _bind(branch, inner, f"{path}{label}/", names) for label, branch in branches.items()}
    gives, outward = _common(
        {label: scoped[len(inner) :] for label, (_, scoped) in bound.items()}, router.key, depth + 1
    )
    plans = {label: plan for label, (plan, _) in bound.items()}
    otherwise = plans.pop(OTHERWISE, None) if element.otherwise is not None else None
    return Choice(router, plans, otherwise, gives), (*inner[len(scope) :], *outward)


def _common(branches: Mapping[str, Scope], router: str, depth: int) -> tuple[dict[str, dict[str, str]], Scope]:
    """What every branch gives, under the type they share: the same type, or the base of all that the others give."""
    gives: dict[str, dict[str, str]] = {label: {} for label in branches}
    outward: list[Producer] = []
    for kind in _shared(list(branches.values())):
        name = f"{router}:{_name(kind)}"
        if any(other.name == name for other in outward):
            name = f"{name}#{len(outward) + 1}"  # two types of one name, from two modules
        for label, scope in branches.items():
            gives[label][name] = _nearest(scope, kind)[0].name
        outward.append(Producer(name, kind, depth))
    return gives, tuple(outward)


def _shared(branches: Sequence[Scope]) -> list[Any]:
    candidates: list[Any] = []
    for producer in (each for scope in branches for each in scope):
        for kind in _bases(producer.gives):
            if kind not in candidates and all(len(_nearest(scope, kind)) == 1 for scope in branches):
                candidates.append(kind)
    return [kind for kind in candidates if not any(other is not kind and _fits(other, kind) for other in candidates)]


def _bases(kind: Any) -> Iterator[Any]:
    yield kind
    if isinstance(kind, type):
        yield from (
            base for base in kind.__mro__[1:] if base not in (object, Struct, Event) and issubclass(base, Struct)
        )


def _bound(node: Node, scope: Scope, path: str, names: _Names) -> Bound:
    hints = _hints(node)
    key = names.of(node, path)
    takes = tuple(_source(node, each, hints, scope) for each in inspect.signature(node).parameters.values())
    return Bound(key, node, takes)


def _gives(bound: Bound, depth: int) -> Producer:
    return Producer(bound.key, _returns(bound.node), depth)


def _returns(node: Node) -> Any:
    """What a node gives to those behind it: not the Stop that nobody is behind."""
    _hints(node)
    return returned(node)


def _mapped(element: Each, scope: Scope, path: str, names: _Names) -> Mapped:
    """The item's parameter is the one of whose type there is a list; of several, that with the nearest list."""
    hints = _hints(element.node)
    lists = [
        (nearest[0], name)
        for name in inspect.signature(element.node).parameters
        if name in hints and len(nearest := _nearest(scope, GenericAlias(list, (hints[name],)))) == 1
    ]
    if not lists:
        raise WiringError(
            f"{_where(element.node)} is run for each item of a list, and nothing upstream gives a list of what it "
            "takes. Put a node before it that returns list[…] of the type of one of its parameters."
        )
    items, name = max(lists, key=lambda found: found[0].depth)
    inner = (*scope, Producer(ITEM, hints[name], 1 + max(producer.depth for producer in scope)))
    return Mapped(_bound(element.node, inner, path, names), items.name, element.at_once)


def _source(node: Node, parameter: inspect.Parameter, hints: Mapping[str, Any], scope: Scope) -> str:
    name, wanted = parameter.name, hints.get(parameter.name)
    if parameter.kind not in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
        raise WiringError(f"{_where(node)}: parameter `{parameter}` takes no argument by its place. Write it plainly.")
    if wanted is None:
        raise WiringError(f"{_where(node)}: parameter `{name}` has no type. Annotate it: parameters are bound by type.")
    if wanted is Run:
        return RUN
    nearest = _nearest(scope, wanted)
    if not nearest:
        raise WiringError(_nothing_gives(node, name, wanted, scope))
    if len(nearest) > 1:
        both = " and ".join(producer.name for producer in nearest)
        raise WiringError(
            f"{_where(node)}: parameter `{name}: {_name(wanted)}` could be what {both} give, "
            "side by side in one `parallel`. Give one of them a type of its own."
        )
    return nearest[0].name


def _nearest(scope: Scope, wanted: Any) -> list[Producer]:
    """Who gives it last: several only where they stand side by side in one `parallel`."""
    fitting = [producer for producer in scope if _fits(producer.gives, wanted)]
    return [producer for producer in fitting if producer.depth == max(each.depth for each in fitting)]


def _nothing_gives(node: Node, name: str, wanted: Any, scope: Scope) -> str:
    there = ", ".join(f"{_name(producer.gives)} (from {producer.name})" for producer in scope)
    return (
        f"{_where(node)}: nothing upstream gives parameter `{name}: {_name(wanted)}`. There is: {there}. "
        f"Put a node that returns {_name(wanted)} before it, or change the parameter's type."
    )


def _hints(node: Node) -> dict[str, Any]:
    if not inspect.iscoroutinefunction(node) or not hasattr(node, "__name__"):
        raise WiringError(f"{_where(node)} is no async function. A node is written `async def`.")
    try:
        hints = get_type_hints(node)
    except NameError as error:
        raise WiringError(f"{_where(node)}: {error}. Import the type where the node's module can see it.") from error
    if "return" not in hints:
        raise WiringError(
            f"{_where(node)} does not say what it returns. Annotate it, `-> None` where it returns nothing."
        )
    return hints


def _check_labels(router: Bound, element: Route) -> None:
    returns = _hints(router.node)["return"]
    labels = set(get_args(returns)) if get_origin(returns) is Literal else set()
    branches = set(element.branches)
    if OTHERWISE in branches and element.otherwise is not None:
        raise WiringError(f'{_where(router.node)}: a label is called "{OTHERWISE}", as the rest is. Rename it.')
    if not labels and element.otherwise is None:
        raise WiringError(
            f"{_where(router.node)} is a router: let it return Literal[…] of its labels, or give the route `otherwise`."
        )
    if labels and (unknown := branches - labels):
        raise WiringError(f"{_where(router.node)} never returns {_list(unknown)}. Its labels are {_list(labels)}.")
    if labels - branches and element.otherwise is None:
        raise WiringError(
            f"{_where(router.node)} may return {_list(labels - branches)}, which has no branch. Add it, or `otherwise`."
        )


def _fits(given: Any, wanted: Any) -> bool:
    """Whether a value declared as `given` can be passed where `wanted` is asked for."""
    if given is NoneType:
        return wanted is NoneType
    if get_origin(given) in (Union, UnionType):
        return all(_fits(each, wanted) or (each is NoneType and each in get_args(wanted)) for each in get_args(given))
    if get_origin(wanted) in (Union, UnionType):
        return any(_fits(given, each) for each in get_args(wanted))
    if isinstance(given, type) and isinstance(wanted, type):
        return issubclass(given, wanted) and wanted is not object
    return bool(given == wanted)


def _where(node: Node) -> str:
    return f"{getattr(node, '__module__', '?')}.{getattr(node, '__name__', node)}"


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")


def _list(labels: set[Any]) -> str:
    return ", ".join(f'"{label}"' for label in sorted(labels, key=str))
