"""Entries of one claim are stored together or not, and never behind the back of a new claim."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID

import asyncpg
import pytest

from schemas import Event
from service.core.group_commit import BadRow
from service.core.servers import Connection
from service.core.settings import Settings
from service.core.supervise import end
from tests.board import board_on
from tests.programs import program_of
from workers.engine.journal import SQL, Journal
from workers.kit import Pipeline
from workers.kit.memory import Kept, Stale

AT = datetime(2026, 1, 1, tzinfo=UTC)


class Job(Event, tag="job", frozen=True):
    pass


async def nothing(event: Job) -> None: ...


@asynccontextmanager
async def claimed(settings: Settings, count: int) -> AsyncIterator[list[UUID]]:
    """Events that somebody runs under claim 1."""
    job = Pipeline(on=Job, flow=[nothing])
    async with board_on(settings, program_of(settings, job=job), workers=0) as board:
        events = [UUID(await board.send("job", {})) for _ in range(count)]
        await board.sql("update work set status = 'running', claim = 1")
        yield events


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(settings.database_url)
    try:
        yield connection
    finally:
        await connection.close()


async def steps(settings: Settings) -> list[tuple[UUID, str]]:
    async with connected(settings) as connection:
        rows = await connection.fetch("select event_id, step from journal order by step")
        return [(row["event_id"], row["step"]) for row in rows]


def entry(step: str, text: bytes = b'{"result":1}') -> Kept:
    return Kept(step, AT, text)


async def test_what_one_claim_stores_together_stands_or_falls_together(settings: Settings) -> None:
    """Beside a row set with a bad entry, and one of a claim that is lost, stands one that is stored."""
    async with claimed(settings, 3) as (bad, lost, good):
        journal = Journal(settings)
        puts = [
            journal.keep(bad, 1, 1, [entry("a"), entry("b", b"{"), entry("c")]),
            journal.keep(lost, 1, 7, [entry("a"), entry("b")]),
            journal.keep(good, 1, 1, [entry("a"), entry("b")]),
        ]
        writing = asyncio.ensure_future(journal.run())
        try:
            ends = await asyncio.gather(*puts, return_exceptions=True)
        finally:
            await end([writing])
        assert [type(each) for each in ends] == [BadRow, Stale, type(None)]
        assert await steps(settings) == [(good, "a"), (good, "b")]


async def test_a_claim_is_not_raised_between_the_look_at_it_and_the_commit(settings: Settings) -> None:
    """Else an entry of a lost claim would come into the journal after the new one has read it."""
    async with claimed(settings, 1) as (event_id,), connected(settings) as mine, connected(settings) as theirs:
        row = ([1], [event_id], [1], [1], ["a"], [AT], ['{"result":1}'], [False])
        await theirs.execute("set lock_timeout = '100ms'")
        async with mine.transaction():
            assert [each["n"] for each in await mine.fetch(SQL["keep"], *row)] == [1]
            with pytest.raises(asyncpg.LockNotAvailableError):
                await theirs.execute("update work set claim = 2")
        async with theirs.transaction():
            await theirs.execute("update work set claim = 2")
            late = asyncio.create_task(mine.fetch(SQL["keep"], *row[:4], ["b"], *row[5:]))
            done, _ = await asyncio.wait([late], timeout=0.1)
            assert not done
        assert await late == []
        assert await steps(settings) == [(event_id, "a")]
