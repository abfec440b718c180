"""What is in scope: who gives which type, and who gives it nearest."""

from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Optional, Union, get_args, get_origin

from msgspec import Struct


class Producer(Struct, frozen=True):
    """A value in scope."""

    name: str
    gives: Any


class Siblings(Struct, frozen=True):
    """What the members of one `parallel` give; with `collect` each of them may be missing."""

    members: "Sequence[Scope]"
    collect: bool = False


class Branches(Struct, frozen=True):
    """What comes out of a route: of each type the nearest in every branch. `gives` notes what was asked for."""

    router: str
    labelled: "Mapping[str, Scope]"
    gives: dict[str, dict[str, str]]


Layer = Producer | Siblings | Branches
Scope = tuple[Layer, ...]
"""What lies upstream, the nearest last."""


def nearest(scope: Scope, wanted: Any) -> list[Producer]:
    """Who gives it last: several only where they stand side by side in one `parallel`."""
    return next((producers for layer in reversed(scope) if (producers := _of(layer, wanted))), [])


def nearness(scope: Scope, wanted: Any) -> int:
    return max((index for index, layer in enumerate(scope) if _of(layer, wanted)), default=-1)


def _of(layer: Layer, wanted: Any) -> list[Producer]:
    match layer:
        case Producer():
            return [layer] if fits(layer.gives, wanted) else []
        case Siblings():
            if layer.collect and not _may_be_none(wanted):
                return []
            return [producer for member in layer.members for producer in nearest(member, wanted)]
        case Branches():
            by_label = {label: nearest(scope, wanted) for label, scope in layer.labelled.items()}
            if not by_label or any(len(producers) != 1 for producers in by_label.values()):
                return []
            return [
                Producer(
                    _out(layer, wanted, {label: producers[0].name for label, producers in by_label.items()}), wanted
                )
            ]


def optional(kind: Any) -> Any:
    return Optional[kind]  # noqa: UP045 - made, not written


def _may_be_none(wanted: Any) -> bool:
    return get_origin(wanted) in (Union, UnionType) and NoneType in get_args(wanted)


def _out(layer: Branches, wanted: Any, names: dict[str, str]) -> str:
    """The name under which it comes out of the route; numbered where two types of one name do."""
    base = name = f"{layer.router}:{named(wanted)}"
    while layer.gives.setdefault(name, names) != names:
        name = f"{base}#{len(layer.gives) + 1}"
    return name


def gifts(scope: Scope) -> Iterator[tuple[str, Any]]:
    """(name, type) of all that is in scope, for people to read."""
    for layer in scope:
        match layer:
            case Producer():
                yield layer.name, layer.gives
            case Siblings():
                for name, kind in (pair for member in layer.members for pair in gifts(member)):
                    yield name, optional(kind) if layer.collect else kind
            case Branches():
                first = next(iter(layer.labelled.values()), ())
                yield from ((layer.router, kind) for _, kind in gifts(first) if _of(layer, kind))


def fits(gives: Any, wanted: Any) -> bool:
    """Whether a value declared as `gives` can be passed where `wanted` is asked for."""
    if gives is NoneType:
        return wanted is NoneType
    if get_origin(gives) in (Union, UnionType):
        return all(fits(kind, wanted) or (kind is NoneType and kind in get_args(wanted)) for kind in get_args(gives))
    if get_origin(wanted) in (Union, UnionType):
        return any(fits(gives, kind) for kind in get_args(wanted))
    if isinstance(gives, type) and isinstance(wanted, type):
        return issubclass(gives, wanted) and wanted is not object
    return bool(gives == wanted)


def named(kind: Any) -> str:
    """A type as a person writes it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " | ".join(map(named, inner))
    if isinstance(origin, type) and inner:
        return f"{origin.__name__}[{', '.join(map(named, inner))}]"
    if kind is NoneType:
        return "None"
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
