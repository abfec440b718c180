"""What is in scope: who gives which type, and who gives it nearest."""

from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from msgspec import Struct

from schemas import Event


class Producer(Struct, frozen=True):
    """A value in scope: `depth` says how near it is, equal for the siblings of one `parallel`."""

    name: str
    gives: Any
    depth: int


Scope = tuple[Producer, ...]


def nearest(scope: Scope, wanted: Any) -> list[Producer]:
    """Who gives it last: several only where they stand side by side in one `parallel`."""
    fitting = [producer for producer in scope if fits(producer.gives, wanted)]
    return [producer for producer in fitting if producer.depth == max(each.depth for each in fitting)]


def shared(branches: Sequence[Scope]) -> list[Any]:
    candidates: list[Any] = []
    for producer in (each for scope in branches for each in scope):
        for kind in _bases(producer.gives):
            if kind not in candidates and all(len(nearest(scope, kind)) == 1 for scope in branches):
                candidates.append(kind)
    return [kind for kind in candidates if not any(other is not kind and fits(other, kind) for other in candidates)]


def _bases(kind: Any) -> Iterator[Any]:
    yield kind
    if isinstance(kind, type):
        yield from (
            base for base in kind.__mro__[1:] if base not in (object, Struct, Event) and issubclass(base, Struct)
        )


def fits(given: Any, wanted: Any) -> bool:
    """Whether a value declared as `given` can be passed where `wanted` is asked for."""
    if given is NoneType:
        return wanted is NoneType
    if get_origin(given) in (Union, UnionType):
        return all(fits(each, wanted) or (each is NoneType and each in get_args(wanted)) for each in get_args(given))
    if get_origin(wanted) in (Union, UnionType):
        return any(fits(given, each) for each in get_args(wanted))
    if isinstance(given, type) and isinstance(wanted, type):
        return issubclass(given, wanted) and wanted is not object
    return bool(given == wanted)


def named(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")
