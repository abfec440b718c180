"""What the protocols of the providers have in common, seen from here."""

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Struct

from workers.simulator.limits import Left
from workers.simulator.replies import Chat, Texts

BAD_REQUEST: Final = 400


class Said(Struct, frozen=True):
    """A body, or the events of a stream, and what it counts as."""

    tokens_in: int
    tokens_out: int
    body: dict[str, Any] | None = None
    events: tuple[bytes, ...] = ()


class Dialect(Struct, frozen=True):
    asked: type[Chat] | type[Texts]
    speak: Callable[[Any, str, int], Said]
    """From what is asked, the twist of a fault, and the simulator's seed."""
    error: Callable[[int, str], dict[str, Any]]
    no_credit: tuple[int, dict[str, Any]]
    error_event: bytes
    left: Callable[[Left], dict[str, str]]


def event(data: object, name: str = "") -> bytes:
    """A server-sent event."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + (data if isinstance(data, bytes) else msgspec.json.encode(data)) + b"\n\n"
