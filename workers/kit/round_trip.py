"""A value as the journal gives it back: what goes on in a first try is what a replay finds."""

from collections.abc import Iterator
from types import NoneType
from typing import Any, Final

from msgspec import MsgspecError, json

from workers.kit.ordered import attributes, ordered

EXACT: Final = (str, int, bool, NoneType)
"""Where a value has exactly one of these types and was declared so, its JSON can't be read as anything else."""
DEPTH_MAX: Final = 64


class Unstorable(Exception):
    """The journal can't give this value back. It is an attempt: what a node returns may depend on what it was given."""


def encode(what: str, value: Any) -> bytes:
    """The JSON of `value`. Raises Unstorable, which says `what` and the path, where it has none."""
    try:
        return json.encode(value)
    except (TypeError, ValueError, MsgspecError) as error:
        raise Unstorable(f"{what} can't be stored: {error} - at `{_path(value)}`") from error


def round_trip(what: str, value: Any, decoder: json.Decoder[Any]) -> tuple[bytes, Any]:
    """The JSON of `value`, and what `decoder` makes of it.

    Raises Unstorable, which says `what` and the path, where these are not the same. They are compared as JSON: a number
    may become a float, sets have no order, and no `__eq__` of the value is called.
    """
    encoded = encode(what, value)
    if type(value) in EXACT and decoder.type is type(value):
        return encoded, value
    try:
        decoded = decoder.decode(encoded)
    except MsgspecError as error:
        suffix = "" if "`$" in str(error) else " - at `$`"
        raise Unstorable(f"{what} could not be read back: {error}{suffix}") from error
    if encode(what, decoded) != encoded:
        before, after = (json.decode(json.encode(ordered(side))) for side in (value, decoded))
        if difference := _difference(before, after):
            raise Unstorable(f"{what} would be read back as another: {difference}")
    return encoded, decoded


def _difference(before: Any, after: Any) -> str:
    """The first place at which two values of JSON differ, in words; nothing where they don't."""
    stack = [("$", before, after)]
    while stack:
        path, old, new = stack.pop()
        if isinstance(old, dict) and isinstance(new, dict):
            if lost := [name for name in old if name not in new]:
                return f"this is no field of its declared type - at `{path}.{lost[0]}`"
            if added := [name for name in new if name not in old]:
                return f"a default would be added - at `{path}.{added[0]}`"
            stack.extend((f"{path}.{name}", old[name], new[name]) for name in reversed(old))
        elif isinstance(old, list) and isinstance(new, list):
            if len(old) != len(new):
                return f"{len(new)} elements of {len(old)} - at `{path}`"
            stack.extend((f"{path}[{n}]", old[n], new[n]) for n in reversed(range(len(old))))
        elif isinstance(old, bool) is not isinstance(new, bool) or old != new:
            return f"{_short(new)} for {_short(old)} - at `{path}`"
    return ""


def _short(value: Any) -> str:
    text = json.encode(value).decode()
    return text if len(text) <= 40 else f"{text[:40]}…"


def _path(value: Any) -> str:
    """The innermost place whose value can't be encoded."""
    path = "$"
    for _ in range(DEPTH_MAX):
        step = next(((name, part) for name, part in _parts(value) if not _encodes(part)), None)
        if step is None:
            break
        path, value = f"{path}{step[0]}", step[1]
    return path


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    match value:
        case dict():
            names = (name if type(name) in (str, int) else type(name).__name__ for name in value)
            yield from ((f".{name}", part) for name, part in zip(names, value.values(), strict=True))
        case list() | tuple() | set() | frozenset():
            yield from ((f"[{n}]", part) for n, part in enumerate(value))
        case _:
            yield from ((f".{name}", part) for _, name, part in attributes(value))


def _encodes(value: Any) -> bool:
    try:
        json.encode(value)
    except (TypeError, ValueError, MsgspecError):
        return False
    return True
