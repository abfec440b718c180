"""What JSON text is refused before it is decoded and where the trouble sits; and how any text becomes storable."""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct

DEPTH_MAX: Final = 64
_STRING: Final = re.compile(rb'"[^"]*+(?:"|\Z)')  # never goes back: linear on any bytes
_NOT_MARKS: Final = bytes(set(range(256)) - set(b'[]{}"'))
_ONE_KIND: Final = bytes.maketrans(b"{}", b"[]")
_AT: Final = re.compile(r" - at `(\$[^`]*)`$")
_FIELD: Final = re.compile(r"(?:missing required|contains unknown) field `([^`]+)`")
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")


class BadEvent(Exception):
    """Bad input: the HTTP status it deserves, the dead letter's reason, the path of the field."""

    def __init__(self, status: int, message: str, path: str = "$", reason: str = "invalid") -> None:
        super().__init__(message)
        self.status: Final = status
        self.message: Final = message
        self.path: Final = path
        self.reason: Final = reason


class TooDeep(BadEvent):
    """Nested deeper than DEPTH_MAX."""


class Trouble(Struct, frozen=True):
    path: str
    message: str


def storable(text: str, length_max: int | None = None) -> str:
    """The text with U+FFFD for each NUL, which Postgres can't keep, and each lone surrogate, which UTF-8 can't say; at
    most `length_max` characters of it.

    For text of strangers on its way into JSON, Postgres, a log line or a header: what a provider answers, what an error
    of user code says, a file's name as `os.fsdecode` gives it.
    """
    cut = str.__getitem__(text, slice(length_max))  # a plain str, also of a subclass with slices of its own
    return _UNSTORABLE.sub("\ufffd", cut)


def check(body: bytes) -> None:
    """Raises BadEvent for what is no UTF-8, nested deeper than DEPTH_MAX or holds a NUL, which Postgres can't keep."""
    if not body.isascii():
        _utf8(body)
    if body.count(b"[") + body.count(b"{") > DEPTH_MAX and _deeper(body):
        raise TooDeep(400, f"nested deeper than {DEPTH_MAX} levels")
    if b"\\u0000" in body and _NUL.search(body):
        trouble = find_trouble(body) or Trouble("$", "holds a NUL character (\\u0000), which can't be stored")
        raise BadEvent(422, trouble.message, trouble.path)


def malformed(body: bytes, message: str) -> BadEvent:
    """The error for a body that does not decode, with the path where a second, slower look finds it."""
    if not body.strip():
        return BadEvent(400, "there is no body: send JSON")
    trouble = find_trouble(body)
    return BadEvent(400, trouble.message, trouble.path) if trouble else BadEvent(400, message)


def misfit(error: Exception, below: str = "$") -> BadEvent:
    """The error for what msgspec decoded and found not to fit, at the path it names, `below` another one."""
    message = str(error)
    at, field = _AT.search(message), _FIELD.search(message)
    path = f"{below}{at[1][1:] if at else ''}"
    return BadEvent(422, _AT.sub("", message), f"{path}.{field[1]}" if field else path)


def find_trouble(body: bytes) -> Trouble | None:
    """The first NUL, lone surrogate or non-finite number in a body that is JSON but for those."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return next(_walk(value, "$"), None)


def _utf8(body: bytes) -> None:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadEvent(400, f"not UTF-8: {error.reason} at byte {error.start}") from error


def _deeper(body: bytes) -> bool:
    """Each round takes the innermost brackets away, so what is left after DEPTH_MAX rounds is deeper.

    Before, strings go: first all that have no bracket, since to look at each by itself takes longer than to decode it.
    """
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    left = _STRING.sub(b"", body.translate(_ONE_KIND, _NOT_MARKS).replace(b'""', b""))
    for _ in range(DEPTH_MAX):
        before, left = left, left.replace(b"[]", b"")
        if len(left) == len(before):
            break
    return bool(left.strip(b"[")) or len(left) > DEPTH_MAX


def _walk(value: Any, path: str) -> Iterator[Trouble]:
    match value:
        case str():
            yield from _in_text(value, path)
        case float() if value != value or value in (float("inf"), float("-inf")):
            yield Trouble(path, "not a finite number")
        case list():
            for index, member in enumerate(value):
                yield from _walk(member, f"{path}[{index}]")
        case dict():
            for name, member in value.items():
                yield from _in_text(name, path)
                yield from _walk(member, f"{path}.{name}")


def _in_text(value: str, path: str) -> Iterator[Trouble]:
    if "\0" in value:
        yield Trouble(path, "holds a NUL character (\\u0000), which can't be stored")
    if any("\ud800" <= char <= "\udfff" for char in value):
        yield Trouble(path, "holds half of a surrogate pair, which is no text")
