"""A reply that comes piece by piece: server-sent events, decoded by us, each awaited in time."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from msgspec import Struct

from workers.models.errors import Fault, outcome_of

EVENT_STREAM: Final = "text/event-stream"
EVENT_MAX: Final = 1 << 20
PIECE_BYTES: Final = 64  # what Python holds for a short text beside its letters
LAST_S: Final = 1.0  # from the event that says that all was said to the end of the body

OnText = Callable[[str], None]
"""Is given each piece of text as it comes."""


class StreamTimeouts(Struct, frozen=True):
    """How long a stream may take: as a whole, to its first piece, and from one piece to the next."""

    total_s: float = 120.0
    first_s: float = 30.0
    stall_s: float = 15.0


class Response(Protocol):
    """An answer whose body was not read yet."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    def aiter_bytes(self) -> AsyncIterator[bytes]: ...


class Listener(Protocol):
    """Puts together one reply of a provider; `over` once its stream has said that all was said."""

    name: str
    over: bool

    def take(self, data: bytes) -> str | None:
        """The text in an event: "" where it brings the reply on by something else, None where it does not.

        Raises Fault where it says that something is wrong, and DecodeError where it is no event.
        """


async def listen(
    opening: AbstractAsyncContextManager[Response],
    listener: Listener,
    timeouts: StreamTimeouts,
    most: int,
    on_text: OnText,
) -> Mapping[str, str]:
    """Read a stream to its end, with the connection closed on any other way out; returns its headers.

    `most`: bytes of all pieces of the reply together. Raises Fault; lets the SDK's own errors through.
    """
    loop, begun, held = asyncio.get_running_loop(), False, 0
    try:
        async with asyncio.timeout(timeouts.first_s) as limit, opening as response:
            if EVENT_STREAM not in response.headers.get("content-type", ""):
                raise Fault("malformed", f"{listener.name} answered 200 with what is no stream.")
            async for data in events(response.aiter_bytes(), listener.name):
                text_delta = listener.take(data)
                if text_delta is not None:
                    held += PIECE_BYTES + len(text_delta or data)
                if held > most:
                    raise Fault("malformed", f"{listener.name} streams a reply of more than {most} bytes.")
                if text_delta:
                    on_text(text_delta)
                if text_delta is not None or listener.over:
                    begun = True
                    limit.reschedule(loop.time() + (LAST_S if listener.over else timeouts.stall_s))
    except TimeoutError as error:
        if not listener.over:
            late = f"paused for {timeouts.stall_s:g} s" if begun else f"gave no token in {timeouts.first_s:g} s"
            raise Fault("timeout", f"{listener.name} {late}.") from error
    return response.headers


async def events(body: AsyncIterator[bytes], name: str) -> AsyncIterator[bytes]:
    """The data of each server-sent event; one that breaks off is none."""
    rest, data, size = b"", list[bytes](), 0
    async for chunk in body:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                data.append(line[5:].strip())
                size += len(line)
            elif not line.strip() and data:
                yield b"\n".join(data)
                data.clear()
                size = 0
        if len(rest) + size > EVENT_MAX:
            raise Fault("malformed", f"{name} sends an event of more than {EVENT_MAX} bytes.")


def broken_off(name: str, status: int, message: str) -> Fault:
    """An error in the middle of a stream, as the HTTP status it would have been: what came before it may be billed."""
    return Fault(outcome_of(status), f"{name} broke its reply off: {message[:300]}")
