"""Journal and ledger: results of steps and LLM calls, stored before what depends on them starts; what is recalled."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar
from uuid import UUID

import asyncpg
from msgspec import Raw

import sql
from service.commits import GroupCommit
from service.errors import Outage, Reject
from service.resources import POSTGRES_ERRORS, Connection, Pool, connect
from service.settings import Settings
from workers.clients.llm import Call
from workers.engine.claimed import SQL, Claimed
from workers.kit.memory import Kept, Stale
from workers.kit.state import NO_KEY

T = TypeVar("T")

RECORD_TIMEOUT_S: Final = 30.0
RECALL_TIMEOUT_S: Final = 10.0
JOURNAL_SQL: Final = sql.queries("journal")


class Ledger:
    """Group commits of calls, shared by all running events."""

    def __init__(self, settings: Settings) -> None:
        self._commits: Final = GroupCommit[tuple[Any, ...], None](
            "ledger", lambda: connect(settings, "ledger"), _record
        )
        self._calling: Final[set[asyncio.Task[Any]]] = set()
        self.run: Final[Callable[[], Awaitable[None]]] = self._commits.run

    async def record(self, event_id: UUID, run: int, claim: int, step: str, call: Call) -> None:
        """Raises Unavailable where Postgres does not take it in time."""
        row = (
            call.call_id,
            event_id,
            run,
            claim,
            step,
            call.at,
            call.prompt,
            call.version,
            call.hash,
            call.request_hash,
        )
        paid = (call.provider, call.model, call.tokens_in, call.tokens_out, call.cost_usd, call.priced, call.ms)
        reply = None if call.reply is None else call.reply.replace("\0", "�")
        await self._commits.put((*row, *paid, call.outcome, reply, call.simulated), RECORD_TIMEOUT_S)

    async def whole(self, call: Coroutine[Any, Any, T]) -> T:
        """Await a call that goes on when the run that made it is cut off: it is paid for, so it is booked."""
        calling = asyncio.create_task(call)
        self._calling.add(calling)
        calling.add_done_callback(self._called)
        return await asyncio.shield(calling)

    def _called(self, done: "asyncio.Task[Any]") -> None:
        self._calling.discard(done)
        if not done.cancelled():
            done.exception()  # fetched, since the run that would have been told may be gone


class Journal:
    """Group commits of entries, shared by all running events."""

    def __init__(self, settings: Settings) -> None:
        self._commits: Final = GroupCommit[tuple[Any, ...], bool](
            "journal", lambda: connect(settings, "journal"), _keep
        )
        self.run: Final[Callable[[], Awaitable[None]]] = self._commits.run

    async def keep(self, event_id: UUID, run: int, claim: int, kept: Kept) -> None:
        """Raises Stale where the claim is not ours any more, Unavailable where Postgres does not take it in time."""
        row = (event_id, run, claim, kept.step, kept.at, kept.entry.decode(), kept.took_state)
        if not await self._commits.put(row, RECORD_TIMEOUT_S):
            raise Stale(str(event_id))


async def recall(pool: Pool, claimed: Claimed) -> dict[str, Raw]:
    """What earlier tries of this run have stored, by step. The first claim of an event can't find anything."""
    if claimed.claim == 1:
        return {}
    rows = await _fetch(pool, JOURNAL_SQL["recall"], claimed.event_id, claimed.run)
    return {row["step"]: Raw(row["entry"].encode()) for row in rows}


async def states(pool: Pool, claimed: Claimed) -> dict[str, Raw]:
    """What the actor remembers, by type. No other event of its key can change that while this one is claimed."""
    if claimed.key is None:
        raise Reject(f"{claimed.type} {NO_KEY}")
    rows = await _fetch(pool, JOURNAL_SQL["states"], claimed.tenant, claimed.key)
    return {row["type"]: Raw(row["value"].encode()) for row in rows}


async def followed(pool: Pool, claimed: Claimed) -> bytes:
    """What the run gave that this event follows."""
    run = int(claimed.id.partition("/")[0])
    rows = await _fetch(pool, JOURNAL_SQL["result_of"], claimed.parent, run)
    if not rows:
        raise Reject(f"what run {run} of event {claimed.parent} gave is not there any more")
    return bytes(rows[0]["result"].encode())


async def _fetch(pool: Pool, statement: str, *arguments: Any) -> list[asyncpg.Record]:
    try:
        async with asyncio.timeout(RECALL_TIMEOUT_S):
            return list(await pool.fetch(statement, *arguments))
    except POSTGRES_ERRORS as error:
        raise Outage(f"Postgres did not answer what was remembered: {error}") from error


async def _record(connection: Connection, batch: Sequence[tuple[Any, ...]]) -> list[None]:
    await connection.execute(SQL["calls"], *zip(*batch, strict=True))
    return [None] * len(batch)


async def _keep(connection: Connection, batch: Sequence[tuple[Any, ...]]) -> list[bool]:
    held = {row["n"] for row in await connection.fetch(JOURNAL_SQL["keep"], *zip(*batch, strict=True))}
    return [n in held for n in range(1, len(batch) + 1)]
