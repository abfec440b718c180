"""What a run remembers: its steps, and what the journal has and will have of them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from msgspec import Raw, Struct, field

from workers.clients.vectors import Document


class JournalMismatch(Exception):
    """A stored result does not decode as what the step returns now."""


class TooLarge(Exception):
    """A result is over CALLBOARD_RESULT_MAX: trying again would not make it smaller."""


class Step(Struct, frozen=True, omit_defaults=True):
    """One execution of a node, for the timeline; or a call that was not made, since its reply was there: `prompt`.

    `n` is its number among what is told live.
    """

    step: str
    at: datetime
    ms: float
    state: str
    error: str = ""
    prompt: str = ""
    n: int = 0


class Child(Struct, frozen=True):
    """An event that a step emitted. `id` says in which run of its parent, in which step and as which of its own."""

    id: str
    type: str
    key: str | None
    due_at: datetime | None
    data: Raw


class Entry(Struct, frozen=True, omit_defaults=True):
    """What the journal keeps of a step: its result, and what it asked the settle to write."""

    result: Raw
    stopped: bool = False
    documents: list[Document] = []
    children: list[Child] = []
    states: dict[str, Raw] = {}


class Kept(Struct, frozen=True):
    """An entry that is not stored yet."""

    step: str
    at: datetime
    entry: bytes
    took_state: bool = False
    emitted: bool = False

    @property
    def lasting(self) -> bool:
        """Whether a replay must know of it although the run that made it succeeded and it cost nothing."""
        return self.took_state or self.emitted


Guard = Callable[[], Awaitable[None]]
"""Returns while this worker holds its lease; waits where it may have lost it."""
Keep = Callable[[UUID, int, int, Kept], Awaitable[None]]
"""Stores an entry. Raises Stale where the claim is not ours any more."""


class Stale(BaseException):
    """The claim is somebody else's by now: this run ends, whatever user code catches."""


class Limits:
    """The time limits that run in a worker."""

    def __init__(self) -> None:
        self._running: Final[set[asyncio.Timeout]] = set()

    def within(self, limit_s: float) -> "_Limited":
        """As `asyncio.timeout`."""
        return _Limited(self._running, asyncio.timeout(limit_s))

    def lift(self) -> None:
        """Somebody has stopped the worker in a debugger: what runs then is not ended for the time that he takes."""
        for limit in self._running:
            if not limit.expired():
                limit.reschedule(None)


class _Limited(Struct, frozen=True):
    """Plain, since every event opens one: `contextlib`'s would cost it some microseconds."""

    running: set[asyncio.Timeout]
    limit: asyncio.Timeout

    async def __aenter__(self) -> asyncio.Timeout:
        self.running.add(self.limit)
        return await self.limit.__aenter__()

    async def __aexit__(self, *raised: Any) -> None:
        self.running.discard(self.limit)
        await self.limit.__aexit__(*raised)


def _untold(step: Step) -> Step:
    return step


class Facts(Struct):
    """What a run has done so far. `found` is the journal of earlier tries, `kept` what rides in the settle.

    What is in `drawn` must be stored before anything else starts; `failed` says which step raised what.
    `states` is what the actor remembers, once it was asked for; `new_states` what steps set; `in_hand` what one has.
    `replies`, of earlier tries too, by what a step asked the how-manieth time; `spent_usd` is what those tries cost.
    `tell` numbers a step and tells who follows; `limits` are those of all runs.
    """

    steps: list[Step] = []
    documents: list[Document] = []
    found: dict[str, Raw] = {}
    replies: dict[tuple[str, str, int], str] = {}
    asked: dict[tuple[str, str], int] = {}
    spent_usd: float = 0.0
    kept: list[Kept] = []
    progress: bool = False
    drawn: list[Kept] = []
    failed: dict[str, BaseException] = {}
    counts: dict[str, int] = {}
    children: list[Child] = []
    emitted: int = 0
    emitted_bytes: int = 0
    states: Mapping[str, Raw] | None = None
    new_states: dict[str, Raw] = {}
    in_hand: set[str] = set()
    limits: Limits = field(default_factory=Limits)
    begun: float = field(default_factory=time.perf_counter)
    tell: Callable[[Step], Step] = _untold

    def ask(self, entry: Entry) -> None:
        """What a step asked for is written with the event's end."""
        self.documents.extend(entry.documents)
        self.children.extend(entry.children)
        self.new_states.update(entry.states)


class Effects(Struct):
    """What one step did beside giving a result."""

    documents: list[Document] = []
    outside: bool = False
    children: list[Child] = []
    over: bool = False
