"""The live feed of an event, and its order: `seq`, the log in Redis, its doorbells.

Everything that happens in one claim of an event and is worth sending has a number n (2, 4, 6, …), given once by the
worker that holds the claim: tokens, ends of steps, ends of calls. The position `(claim, n)` orders all of it, since
claims grow by one. Tokens live only in Redis, in the event's own stream, whose entry ids are `{claim}-{n}`: Redis
itself refuses entries of a claim that is lost to one which has entries there. What lasts (steps in `attempts.steps`,
replies in `calls`) carries its number in Postgres too. So a reader that meets a gap, because Redis was away, emptied
or trimmed or a worker died, asks Postgres for what lies in it; and what is numbered up to where a client has read is
not sent again.

    seq = claim · 10⁹ + n · 10 + k

k says which status of the claim was sent last (RANKS), 9 the end. n is odd for the `restart` that goes before a token.
An entry of a call that has ended is published only when its reply is in Postgres, and holds back the entries behind
it: whoever sees an entry finds everything before it. A seq fits into the 53 bits of a JavaScript number.

What a client has of a call is known while the log is whole: then it is sent the rest. Else it is sent `restart` and the
stored reply from its beginning.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec
from msgspec import Struct
from redis.asyncio import Redis

from service.core.streams import Names

KEPT_S: Final = 3600
LENGTH_MAX: Final = 10_000  # entries of one event, about
PAGE: Final = 1000
PAGE_MAX: Final = 64 << 10  # bytes of entries that are read at a time; the first one may have more
READ: Final = Path(__file__).with_name("live_read.lua").read_text(encoding="utf-8")

N_MAX: Final = 99_999_999
END: Final = 9
RANKS: Final = {"running": 1, "scheduled": 2, "waiting": 3, "queued": 4}

Position = tuple[int, int]
"""Claim and number."""


class Token(Struct, frozen=True, array_like=True, tag="t"):
    """A piece of a reply; `call` names the request, `call_id` the call that was made for it."""

    step: str
    call: str
    call_id: str
    offset: int
    text: str


class Stepped(Struct, frozen=True, array_like=True, tag="s"):
    step: str
    state: str
    ms: float


class Answered(Struct, frozen=True, array_like=True, tag="a"):
    """A reply of so many characters is stored."""

    step: str
    call: str
    call_id: str
    length: int


Entry = Token | Stepped | Answered
_DECODER: Final = msgspec.json.Decoder(Entry)


def seq(position: Position, rank: int) -> int:
    claim, n = position
    return claim * 1_000_000_000 + n * 10 + rank


def parse_seq(number: int) -> tuple[Position, int]:
    """Position and rank of a seq."""
    claim, rest = divmod(number, 1_000_000_000)
    n, rank = divmod(rest, 10)
    return (claim, n), rank


def call_name(question_hash: str, ordinal: int) -> str:
    """Names a request of a step by its hash and its ordinal: the same in each try."""
    return f"{question_hash[:16]}.{ordinal}"


def short_id(call_id: UUID) -> str:
    return call_id.hex[:12]


def log_of(names: Names, event_id: UUID) -> str:
    return f"{names.live}:{event_id}"


async def read_log(redis: Redis, name: str, after: Position) -> tuple[list[tuple[Position, Entry]], bool]:
    """Up to PAGE entries, of PAGE_MAX bytes, of the log `name` behind `after`; and whether there may be more."""
    arguments = (f"{after[0]}-{after[1]}", PAGE, PAGE_MAX)
    more, entries = await redis.register_script(READ)(keys=[name], args=arguments)
    return [(_position(entry_id), _DECODER.decode(entry)) for entry_id, entry in entries], bool(more)


def ids(events: Sequence[UUID]) -> bytes:
    """The message of a doorbell."""
    return b"".join(event_id.bytes for event_id in events)


def _position(entry_id: bytes) -> Position:
    claim, _, n = entry_id.partition(b"-")
    return int(claim), int(n)
