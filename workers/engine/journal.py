"""The journal: results of steps, stored before what depends on them starts."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from uuid import UUID

import asyncpg
from msgspec import Raw

import sql
from service.core.errors import Outage, Reject, text_of
from service.core.group_commit import GroupCommit
from service.core.metrics import Meters
from service.core.servers import POSTGRES_ERRORS, Connection, Pool, connect
from service.core.settings import Settings
from service.core.time_limit import our_wait
from workers.engine.claim import Claimed
from workers.kit.memory import Facts, Kept, Stale
from workers.kit.state import NO_KEY

RECORD_TIMEOUT_S: Final = 30.0
RECALL_TIMEOUT_S: Final = 10.0
SQL: Final = sql.queries("journal")

Rows = Sequence[tuple[Any, ...]]
"""The entries of one claim: one item of a group commit, which is never halved."""


class Journal:
    """Group commits of entries, shared by all running events; the entries of one claim are stored together or not."""

    def __init__(self, settings: Settings, meters: Meters | None = None) -> None:
        self._commits: Final = GroupCommit[Rows, bool](
            "journal", lambda: connect(settings, "journal"), _keep, len, meters, warm=True
        )
        self.commits: Final = self._commits.health
        self.run: Final[Callable[[], Awaitable[None]]] = self._commits.run

    async def keep(self, event_id: UUID, run: int, claim: int, entries: Sequence[Kept]) -> None:
        """Raises Stale where the claim is not ours any more, Unavailable where Postgres does not take it in time."""
        rows = [
            (event_id, run, claim, record.step, record.at, record.entry.decode(), record.took_state)
            for record in entries
        ]
        with our_wait():
            held = await self._commits.put(rows, RECORD_TIMEOUT_S)
        if not held:
            raise Stale(str(event_id))


async def recall(pool: Pool, claimed: Claimed, facts: Facts) -> None:
    """Fills in what earlier tries have stored. The first claim of an event can't find anything."""
    if claimed.claim == 1:
        return
    for row in await _fetch(pool, SQL["recall"], claimed.event_id, claimed.run):
        match row["kind"]:
            case "step":
                facts.journal[row["step"]] = Raw(row["stored_text"].encode())
            case "call":
                facts.replies[row["step"], row["question_hash"], row["ordinal"]] = row["stored_text"]
            case "spent":
                facts.spent_usd = row["usd"] or 0.0


async def states(pool: Pool, claimed: Claimed) -> dict[str, Raw]:
    """What the actor remembers, by type. No other event of its key can change that while this one is claimed."""
    if claimed.partition_key is None:
        raise Reject(f"{claimed.type} {NO_KEY}")
    rows = await _fetch(pool, SQL["states"], claimed.tenant, claimed.partition_key)
    return {row["type"]: Raw(row["value"].encode()) for row in rows}


async def run_result(pool: Pool, claimed: Claimed) -> bytes:
    """What the run gave that this event follows."""
    run = int(claimed.id.partition("/")[0])
    rows = await _fetch(pool, SQL["result_of"], claimed.parent, run)
    if not rows:
        raise Reject(f"what run {run} of event {claimed.parent} gave is not there any more")
    return bytes(rows[0]["result"].encode())


async def _fetch(pool: Pool, statement: str, *arguments: Any) -> list[asyncpg.Record]:
    try:
        with our_wait():
            async with asyncio.timeout(RECALL_TIMEOUT_S):
                return list(await pool.fetch(statement, *arguments))
    except POSTGRES_ERRORS as error:
        raise Outage(f"Postgres did not answer what was remembered: {text_of(error)}") from error


async def _keep(connection: Connection, batch: Sequence[Rows]) -> list[bool]:
    entries = [(n, *row) for n, rows in enumerate(batch, 1) for row in rows]
    held = {row["n"] for row in await connection.fetch(SQL["keep"], *zip(*entries, strict=True))}
    return [n in held for n in range(1, len(batch) + 1)]
