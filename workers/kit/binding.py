"""Parameters are bound by type: each to the nearest producer upstream."""

import inspect
from collections.abc import Mapping
from types import GenericAlias
from typing import Any

from schemas import Event
from service.errors import WiringError
from workers.kit.flow import Each, Element, Flow, Node, Parallel, Route
from workers.kit.plan import EVENT, ITEM, OTHERWISE, RUN, Bound, Choice, Mapped, Part, Plan, Together
from workers.kit.run import Run
from workers.kit.scope import Producer, Scope, named, nearest, shared
from workers.kit.signature import check_labels, hints_of, returns, where


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
            return mapped, (Producer(mapped.bound.key, GenericAlias(list, (returns(element.node),)), depth),)
        case Route():
            return _route(element, scope, path, names)
        case _:
            bound = _bound(element, scope, path, names)
            return bound, (_gives(bound, depth),)


def _route(element: Route, scope: Scope, path: str, names: _Names) -> tuple[Part, Scope]:
    router = _bound(element.router, scope, path, names)
    check_labels(element)
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
    for kind in shared(list(branches.values())):
        name = f"{router}:{named(kind)}"
        if any(other.name == name for other in outward):
            name = f"{name}#{len(outward) + 1}"  # two types of one name, from two modules
        for label, scope in branches.items():
            gives[label][name] = nearest(scope, kind)[0].name
        outward.append(Producer(name, kind, depth))
    return gives, tuple(outward)


def _bound(node: Node, scope: Scope, path: str, names: _Names) -> Bound:
    hints = hints_of(node)
    key = names.of(node, path)
    takes = tuple(_source(node, each, hints, scope) for each in inspect.signature(node).parameters.values())
    return Bound(key, node, takes)


def _gives(bound: Bound, depth: int) -> Producer:
    return Producer(bound.key, returns(bound.node), depth)


def _mapped(element: Each, scope: Scope, path: str, names: _Names) -> Mapped:
    """The item's parameter is the one of whose type there is a list; of several, that with the nearest list."""
    hints = hints_of(element.node)
    lists = [
        (found[0], name)
        for name in inspect.signature(element.node).parameters
        if name in hints and len(found := nearest(scope, GenericAlias(list, (hints[name],)))) == 1
    ]
    if not lists:
        raise WiringError(
            f"{where(element.node)} is run for each item of a list, and nothing upstream gives a list of what it "
            "takes. Put a node before it that returns list[…] of the type of one of its parameters."
        )
    items, name = max(lists, key=lambda each: each[0].depth)
    inner = (*scope, Producer(ITEM, hints[name], 1 + max(producer.depth for producer in scope)))
    return Mapped(_bound(element.node, inner, path, names), items.name, element.at_once)


def _source(node: Node, parameter: inspect.Parameter, hints: Mapping[str, Any], scope: Scope) -> str:
    name, wanted = parameter.name, hints.get(parameter.name)
    if parameter.kind not in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
        raise WiringError(f"{where(node)}: parameter `{parameter}` takes no argument by its place. Write it plainly.")
    if wanted is None:
        raise WiringError(f"{where(node)}: parameter `{name}` has no type. Annotate it: parameters are bound by type.")
    if wanted is Run:
        return RUN
    found = nearest(scope, wanted)
    if not found:
        raise WiringError(_nothing_gives(node, name, wanted, scope))
    if len(found) > 1:
        both = " and ".join(producer.name for producer in found)
        raise WiringError(
            f"{where(node)}: parameter `{name}: {named(wanted)}` could be what {both} give, "
            "side by side in one `parallel`. Give one of them a type of its own."
        )
    return found[0].name


def _nothing_gives(node: Node, name: str, wanted: Any, scope: Scope) -> str:
    there = ", ".join(f"{named(producer.gives)} (from {producer.name})" for producer in scope)
    return (
        f"{where(node)}: nothing upstream gives parameter `{name}: {named(wanted)}`. There is: {there}. "
        f"Put a node that returns {named(wanted)} before it, or change the parameter's type."
    )
