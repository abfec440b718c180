"""Sets in an order that every process agrees on: the order in which Python walks a set hangs on the process."""

from collections.abc import Iterator
from copy import copy
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from typing import Any, Final

from msgspec import Raw, Struct, json
from msgspec.structs import fields, force_setattr

PLAIN: Final = (str, bytes, int, float, type(None))


def ordered(value: Any) -> Any:
    """`value` with a list for each set in it, for encoding only: elements stand in the order of their JSON.

    msgspec's `order="deterministic"` does not do: it refuses keys that are no text and sets of Structs, enums or mixed
    types, does not order a set of frozensets, and sorts dicts, whose own order is the same in every process.
    What holds no set is returned as it is.
    """
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, set | frozenset):
        return [Raw(element) for element in sorted(json.encode(ordered(element)) for element in value)]
    if isinstance(value, list | tuple):
        elements = [ordered(element) for element in value]
        return value if all(map(_same, elements, value)) else elements
    if isinstance(value, dict):
        values = [ordered(element) for element in value.values()]
        return value if all(map(_same, values, value.values())) else dict(zip(value, values, strict=True))
    changed = {name: new for name, _, old in attributes(value) if (new := ordered(old)) is not old}
    if not changed:
        return value
    other = copy(value)  # not replace(): that would run the class's own __post_init__
    for name, new in changed.items():
        (force_setattr if isinstance(other, Struct) else object.__setattr__)(other, name, new)
    return other


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
