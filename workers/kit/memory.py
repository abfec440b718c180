"""What a run remembers: its steps, and what the journal has and will have of them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from msgspec import Raw, Struct, field
from msgspec.structs import replace

from service.core.errors import WiringError
from service.documents.vectors import Document

KEPT_MAX: Final = 500
KEPT_BYTES_MAX: Final = 4 << 20


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
    took_state: bool = False

    def around(self, inner: "Sequence[Entry]") -> "Entry":
        """This entry with the effects of the steps that ran within its step, in the order in which they completed.

        A replay that finds the outer step does not run the inner ones, so their effects must be in its entry.
        """
        if not inner:
            return self
        entries = (*inner, self)
        return replace(
            self,
            documents=[document for entry in entries for document in entry.documents],
            children=[child for entry in entries for child in entry.children],
            states={name: state for entry in entries for name, state in entry.states.items()},
            took_state=any(entry.took_state for entry in entries),
        )


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
Keep = Callable[[UUID, int, int, Sequence[Kept]], Awaitable[None]]
"""Stores all of these entries or, with Stale, none of them: then the claim belongs to another worker."""


class Stale(BaseException):
    """The claim is somebody else's by now: this run ends, whatever user code catches."""


class StepOver(Stale):
    """Something was asked of the Run of a step that has ended, under whatever claim: a mistake in user code."""


def _untold(step: Step) -> Step:
    return step


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Facts(Struct):
    """What a run has done so far. `journal` is that of earlier tries, `unstored` what is not in it yet.

    What completed first stands first in `unstored`; one `store` at a time takes from it, under the lock `storing`. What
    is left at the end is stored by the settle. `failed` says which step raised what.
    `states` is what the actor remembers, once it was asked for; `new_states` what steps set; `in_hand` what one has.
    `replies`, of earlier tries too, by a step's request and its ordinal; `spent_usd` is what those tries cost.
    `tell` numbers a step and tells who follows. `started_at` is when the event was claimed, on the clock of Postgres.
    """

    steps: list[Step] = []
    documents: list[Document] = []
    journal: dict[str, Raw] = {}
    replies: dict[tuple[str, str, int], str] = {}
    ordinals: dict[tuple[str, str], int] = {}
    spent_usd: float = 0.0
    unstored: list[Kept] = []
    kept_bytes: int = 0
    progress: bool = False
    storing: asyncio.Lock | None = None
    failed: dict[str, BaseException] = {}
    counts: dict[str, int] = {}
    children: list[Child] = []
    emitted: int = 0
    emitted_bytes: int = 0
    states: Mapping[str, Raw] | None = None
    new_states: dict[str, Raw] = {}
    in_hand: set[str] = set()
    begun: float = field(default_factory=time.perf_counter)
    started_at: datetime = field(default_factory=_utc_now)
    tell: Callable[[Step], Step] = _untold

    def now(self) -> datetime:
        """The time on the clock of Postgres, to within what a claim takes: this machine's own clock may be wrong, and
        what is written here is compared with what other workers write."""
        return self.started_at + timedelta(0, 0, int((time.perf_counter() - self.begun) * 1e6))

    @property
    def kept_much(self) -> bool:
        """Whether what is not stored yet fills a statement."""
        return len(self.unstored) >= KEPT_MAX or self.kept_bytes >= KEPT_BYTES_MAX

    def keep(self, record: Kept) -> None:
        self.unstored.append(record)
        self.kept_bytes += len(record.entry)

    def stored(self, count: int) -> None:
        """The first `count` of `unstored` are in the journal."""
        self.kept_bytes -= sum(len(record.entry) for record in self.unstored[:count])
        del self.unstored[:count]

    def ask(self, entry: Entry) -> None:
        """What a step asked for is written with the event's end."""
        self.documents.extend(entry.documents)
        self.children.extend(entry.children)
        self.new_states.update(entry.states)


class Effects(Struct):
    """What one step did beside giving a result, and what was drawn in it since it last ran a step of its own.

    `inner` are the entries, without their results, of the steps that ran within it; the body of a free form (`is_step`
    is false) has no entry that would take them in.
    """

    documents: list[Document] = []
    outside: bool = False
    children: list[Child] = []
    over: bool = False
    is_step: bool = False
    inner: list[Entry] = []
    drawn: list[Kept] = []

    def take_in(self, entry: Entry) -> None:
        if self.is_step and (entry.documents or entry.children or entry.states or entry.took_state):
            self.inner.append(replace(entry, result=Raw(b"null")))


def check_in_step(call: str, step_key: str, effects: Effects) -> None:
    """Raises WiringError between the steps of a free form, and where a node has returned and left a task running."""
    if not step_key or effects.over:
        raise WiringError(f"{call}: call it while a node runs, in the free form by `await run.step(…)`.")


async def step_guard(outer: Guard, effects: Effects) -> None:
    """The guard of a step, within `outer`: when the step is over, nothing more is started in its name."""
    await outer()
    if effects.over:
        raise StepOver("this Run belongs to a step that is over: use the one that the node is given")
