"""The ledger: every LLM call, open before it is made, closed before its reply is used."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

import sql
from service.core.errors import Outage, Unavailable
from service.core.group_commit import BadRow, GroupCommit
from service.core.metrics import Meters
from service.core.servers import Connection, Pool, connect
from service.core.settings import Settings
from service.core.supervise import Part, supervised
from service.core.time_limit import our_wait
from workers.engine.budget.budgets import DayBudgets
from workers.engine.budget.prompt_versions import PromptVersions
from workers.engine.claim import Claimed
from workers.engine.journal import RECORD_TIMEOUT_S
from workers.engine.run_metrics import called
from workers.models.client import Call

T = TypeVar("T")
Row = tuple[Any, ...]

SQL: Final = sql.queries("ledger")
CLOSE_TIMEOUT_S: Final = 600.0
DRAIN_TIMEOUT_S: Final = 5.0


class Opened(Struct, frozen=True):
    """A call, its row, and how it ended."""

    row: Row
    end: Row = ()


class Ledger:
    """Group commits of calls, shared by all running events. `day_budgets` and `prompt_versions`: None where answers are
    simulated: nobody pays, and prompts may be changed."""

    def __init__(self, settings: Settings, pool: Pool, meters: Meters | None = None) -> None:
        self.meters: Final = meters or Meters()
        self.day_budgets: Final = None if settings.simulated else DayBudgets(pool, settings.budget_day_usd)
        self.prompt_versions: Final = None if settings.simulated else PromptVersions(pool)
        self._settings: Final = settings
        self._opens: Final = GroupCommit[Row, bool]("calls", self._connect_relaxed, _open, meters=self.meters)
        self._closes: Final = GroupCommit[Opened, bool](
            "ledger", lambda: connect(settings, "ledger"), _close, meters=self.meters
        )
        self.commits: Final = (self._opens.health, self._closes.health)
        self._calling: Final[set[asyncio.Future[Any]]] = set()
        self._closing: Final[set[asyncio.Future[Any]]] = set()

    async def run(self) -> None:
        parts: dict[str, Part] = {"calls": self._opens.run, "ledger": self._closes.run}
        if self.day_budgets is not None:
            parts["budget"] = self.day_budgets.run
        async with supervised(parts):
            await asyncio.Event().wait()

    async def open(self, row: Row, unsent: Call) -> bool:
        """Whether the call may be made: not where its allowance has been taken back.

        Raises Unavailable where Postgres does not take it in time; as it may have, it is closed as `unsent` later.
        """
        try:
            with our_wait():
                return await self._opens.put(row, RECORD_TIMEOUT_S)
        except Unavailable:
            self._close_later(_ended(row, unsent))
            raise

    async def close(self, row: Row, call: Call, feed_n: int | None = None) -> bool:
        """Whether a retry will find the reply; `feed_n` is its number in the live feed.

        Raises Unavailable where Postgres does not take it in time; the fact is then stored later.
        """
        called(self.meters, call)
        ended = _ended(row, call, feed_n)
        try:
            with our_wait():
                return await asyncio.shield(_hold(self._closing, self._closes.begin(ended, RECORD_TIMEOUT_S)))
        except BadRow:
            bare = replace(call, reply=None, cause="its reply could not be stored", streamed=False)
            self._close_later(_ended(row, bare))
            raise
        except Unavailable:
            self._close_later(ended)
            raise

    def _close_later(self, ended: Opened) -> None:
        with suppress(Unavailable):  # as many wait as may: the claim's end closes it
            _hold(self._closing, self._closes.begin(ended, CLOSE_TIMEOUT_S))

    async def shield(self, call: Coroutine[Any, Any, T]) -> T:
        """Await a call that goes on when the run that made it is cut off: it is paid for, so it is booked."""
        return await asyncio.shield(_hold(self._calling, asyncio.create_task(call)))

    async def drain(self) -> None:
        """Ends the calls under way: they are booked as unknown, and what was drawn and not used goes back."""
        for call in self._calling:
            call.cancel()
        for under_way in (self._calling, self._closing):
            if under_way:
                await asyncio.wait([*under_way], timeout=DRAIN_TIMEOUT_S)
        if self.day_budgets is not None:
            with suppress(Outage):  # whoever rescues finds it
                await self.day_budgets.give_back()

    async def _connect_relaxed(self) -> Connection:
        """An open row that is lost with a crash of Postgres tells of a call that is made again: no need to wait."""
        connection = await connect(self._settings, "calls")
        await connection.execute("set synchronous_commit = off")
        return connection


def _hold(under_way: set[asyncio.Future[Any]], future: asyncio.Future[T]) -> asyncio.Future[T]:
    under_way.add(future)

    def done(future: asyncio.Future[T]) -> None:
        under_way.discard(future)
        if not future.cancelled():
            future.exception()  # fetched, since the run that would have been told may be gone

    future.add_done_callback(done)
    return future


def _ended(row: Row, call: Call, feed_n: int | None = None) -> Opened:
    paid = (call.call_id, call.tokens_in, call.tokens_out, call.cost_usd, call.ms)
    return Opened(row, (*paid, call.outcome, call.cause, call.reply, call.simulated, feed_n))


def opening(claimed: Claimed, step: str, call: Call, *, held: bool) -> Row:
    """The row of a call that is about to be made; `held` against the budget of its day."""
    question = (call.prompt, call.version, call.hash, call.request_hash, call.question_hash, call.ordinal)
    cost = (call.provider, call.model, call.cost_usd, call.priced)
    who = (claimed.worker, claimed.tenant, call.at.date() if held else None)
    return (call.call_id, claimed.event_id, claimed.run, claimed.claim, step, call.at, *question, *cost, *who)


async def _open(connection: Connection, batch: Sequence[Row], *, is_sent: bool = False) -> list[bool]:
    rows = await connection.fetch(SQL["open_calls"], *zip(*batch, strict=True), is_sent)
    held = {row["call_id"] for row in rows}
    return [row[0] in held for row in batch]


async def _close(connection: Connection, batch: Sequence[Opened]) -> list[bool]:
    closed = await _closed(connection, batch)
    if lost := [opened for opened in batch if opened.end[0] not in closed]:
        await _open(connection, [opened.row for opened in lost], is_sent=True)
        closed |= await _closed(connection, lost)
    return [closed.get(opened.end[0], False) for opened in batch]


async def _closed(connection: Connection, batch: Sequence[Opened]) -> dict[Any, bool]:
    rows = await connection.fetch(SQL["close_calls"], *zip(*[opened.end for opened in batch], strict=True))
    return {row["call_id"]: row["memory"] for row in rows}
