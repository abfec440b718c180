"""Sets in an order that every process agrees on: Python walks the same set differently in each process."""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from typing import Any, Final

from msgspec import MsgspecError, Raw, Struct, json
from msgspec.structs import fields, force_setattr

PLAIN: Final = (str, bytes, int, float, type(None))
_PLAIN: Final = frozenset((*PLAIN, bool))
DEPTH_MAX: Final = 64

Replace = Callable[[set[Any] | frozenset[Any], Sequence[tuple[bytes, Any]]], Any]
"""What stands for a set, of which it gets the elements with their JSON, in its order."""


def ordered(value: Any) -> Any:
    """`value` to be encoded as JSON: with a list for each set in it, whose elements stand in the order of their JSON.

    msgspec's `order="deterministic"` does not do: it refuses keys that are no text and sets of Structs, enums or mixed
    types, does not order a set of frozensets, and sorts dicts, whose own order is the same in every process.
    """
    return _replaced(value, lambda _, elements: [Raw(encoded) for encoded, _ in elements], DEPTH_MAX)


def in_order(value: Any) -> Any:
    """`value` to be read by a template: with sets in it that are walked and printed in the order of their JSON."""
    return _replaced(value, _walked, DEPTH_MAX)


class _Walked(frozenset[Any]):
    """A set that remembers in which order it is walked, and prints as `kind` does."""

    elements: Sequence[Any]
    kind: type[Any]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.elements)

    def __repr__(self) -> str:
        text = ", ".join(map(repr, self.elements))
        if self.kind is set:
            return f"{{{text}}}" if text else "set()"
        return f"frozenset({{{text}}})" if text else "frozenset()"


def _walked(value: set[Any] | frozenset[Any], elements: Sequence[tuple[bytes, Any]]) -> _Walked:
    walked = _Walked(value)
    walked.elements = [_replaced(element, _walked, DEPTH_MAX) for _, element in elements]
    walked.kind = set if isinstance(value, set) else frozenset
    return walked


def _replaced(value: Any, replace: Replace, depth: int) -> Any:
    """`value` itself where it holds no set."""
    if isinstance(value, PLAIN) or depth == 0 or _is_flat(value):
        return value
    if isinstance(value, set | frozenset):
        try:
            elements = sorted(((json.encode(ordered(item)), item) for item in value), key=lambda pair: pair[0])
        except (TypeError, ValueError, MsgspecError):
            return value  # an element has no JSON: whoever encodes the set says so
        return replace(value, elements)
    if isinstance(value, list | tuple):
        items = [_replaced(item, replace, depth - 1) for item in value]
        return value if all(map(_same, items, value)) else items
    if isinstance(value, dict):
        values = [_replaced(item, replace, depth - 1) for item in value.values()]
        return value if all(map(_same, values, value.values())) else dict(zip(value, values, strict=True))
    changed = {}
    for name, _, old in attributes(value):
        if (new := _replaced(old, replace, depth - 1)) is not old:
            changed[name] = new
    if not changed:
        return value
    other = copy(value)  # not replace(): that would run the class's own __post_init__
    for name, new in changed.items():
        (force_setattr if isinstance(other, Struct) else object.__setattr__)(other, name, new)
    return other


def _is_flat(value: Any) -> bool:
    """Whether it plainly holds no set: most values are so, and this takes no walk."""
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    return members is not None and _PLAIN.issuperset(map(type, members))


def attributes(value: Any) -> Iterator[tuple[str, str, Any]]:
    """(name, name in JSON, value) of each field of a Struct or dataclass that has one; of anything else nothing."""
    names: list[tuple[str, str]] = []
    if isinstance(value, Struct):
        names = [(field.name, field.encode_name) for field in fields(value)]
    elif is_dataclass(value) and not isinstance(value, type):
        names = [(field.name, field.name) for field in dataclass_fields(value)]
    for name, encoded in names:
        if hasattr(value, name):
            yield name, encoded, getattr(value, name)


def _same(one: Any, other: Any) -> bool:
    return one is other
