"""Group commit: callers share statements, each gets its own result, and none is harmed by another's row."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from msgspec.structs import replace

from service.core import group_commit
from service.core.errors import Unavailable
from service.core.group_commit import BadRow, GroupCommit
from service.core.roles import as_owner
from service.core.servers import Connection, connect
from service.core.settings import Settings
from service.core.supervise import end
from tests.eventually import eventually

TABLE: Final = "create table notes (n integer primary key, note text not null check (note <> 'forbidden'))"
WRITE: Final = """
with given as (select * from unnest($1::integer[], $2::text[]) as g (n, note)),
     written as (insert into notes select n, note from given on conflict do nothing)
select n, note from given order by n
"""
OURS: Final = "callboard notes"
TIMEOUT_S: Final = 20.0

Note = tuple[int, str]
Notes = GroupCommit[Note, str]


class Desk:
    """A table of notes behind a group commit; `batches` are the sizes of the statements that were tried."""

    def __init__(self, settings: Settings) -> None:
        self.batches: Final[list[int]] = []
        self.commits: Final = Notes("notes", lambda: connect(settings, "notes"), self._write)

    async def put(self, n: int, note: str) -> str:
        return await self.commits.put((n, note), TIMEOUT_S)

    async def _write(self, connection: Connection, batch: Sequence[Note]) -> list[str]:
        self.batches.append(len(batch))
        if any(note == "bug" for _, note in batch):
            raise KeyError("a bug of ours")
        rows = await connection.fetch(WRITE, [n for n, _ in batch], [note for _, note in batch])
        found = {row["n"]: row["note"] for row in rows}
        return [f"{n}: {found[n]}" for n, _ in batch]


@asynccontextmanager
async def open_desk(settings: Settings, writers: int = 1) -> AsyncIterator[Desk]:
    desk = Desk(settings)
    task = asyncio.create_task(desk.commits.run(writers))
    try:
        yield desk
    finally:
        await end([task])


@pytest.fixture
async def sql(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(as_owner(settings).database_url)
    await connection.execute(f"{TABLE}; grant all on notes to public")
    yield connection
    await connection.close()


@pytest.fixture
async def desk(settings: Settings, sql: asyncpg.Connection) -> AsyncIterator[Desk]:
    async with open_desk(settings) as opened:
        yield opened


async def put_all(desk: Desk, notes: Sequence[str], first: int = 0) -> list[str | BaseException]:
    puts = (desk.put(n, note) for n, note in enumerate(notes, first))
    return await asyncio.gather(*puts, return_exceptions=True)


async def stored(sql: asyncpg.Connection) -> list[Note]:
    return [(row["n"], row["note"]) for row in await sql.fetch("select n, note from notes order by n")]


async def test_callers_share_a_statement(desk: Desk, sql: asyncpg.Connection) -> None:
    assert await put_all(desk, ["good"] * 100) == [f"{n}: good" for n in range(100)]
    assert desk.batches == [100]
    assert await stored(sql) == [(n, "good") for n in range(100)]
    await put_all(desk, ["good"] * 1200, 100)
    assert desk.batches == [100, 500, 500, 200]


@pytest.mark.parametrize("poison", ["forbidden", "a\0b", "half \ud800", "bug"])
async def test_a_poison_row_among_a_hundred_harms_nobody_else(desk: Desk, sql: asyncpg.Connection, poison: str) -> None:
    notes = ["good"] * 100
    notes[41] = poison
    results = await put_all(desk, notes)
    assert isinstance(results[41], BadRow)
    assert [result for n, result in enumerate(results) if n != 41] == [f"{n}: good" for n in range(100) if n != 41]
    assert await stored(sql) == [(n, "good") for n in range(100) if n != 41]
    assert await desk.put(41, "better") == "41: better"


async def test_what_is_put_together_is_written_together(settings: Settings, sql: asyncpg.Connection) -> None:
    """By one of two writers, however much it is; with bad ones in it, in halves that come in order."""
    async with open_desk(settings, writers=2) as desk:
        good = await desk.commits.put_all([(n, "good") for n in range(1200)], TIMEOUT_S)
        assert (good, desk.batches) == ([f"{n}: good" for n in range(1200)], [1200])
        notes = [(n, "forbidden" if n % 7 == 0 else "good") for n in range(2000, 2100)]
        mixed = await desk.commits.put_all(notes, TIMEOUT_S)
    assert [isinstance(item, BadRow) for item in mixed] == [note == "forbidden" for _, note in notes]
    rows = await sql.fetch("select n from notes where n >= 2000 order by xmin::text::bigint, ctid")
    assert [row["n"] for row in rows] == [n for n, note in notes if note == "good"]


async def test_a_connection_lost_between_puts_and_in_the_middle_of_them(desk: Desk, sql: asyncpg.Connection) -> None:
    sent = 0
    for _ in range(5):
        putting = asyncio.ensure_future(put_all(desk, ["good"] * 200, sent))
        await asyncio.sleep(0)
        await _cut(sql)
        assert await putting == [f"{n}: good" for n in range(sent, sent + 200)]
        sent += 200
    assert await stored(sql) == [(n, "good") for n in range(sent)]


async def test_a_commit_whose_answer_was_lost_is_made_once(settings: Settings, sql: asyncpg.Connection) -> None:
    tries = itertools.count()

    class Forgetful(Desk):
        async def _write(self, connection: Connection, batch: Sequence[Note]) -> list[str]:
            results = await super()._write(connection, batch)
            if next(tries) < 3:
                raise ConnectionResetError("the answer was lost")
            return results

    desk = Forgetful(settings)
    task = asyncio.create_task(desk.commits.run())
    assert await put_all(desk, ["good"] * 10) == [f"{n}: good" for n in range(10)]
    assert desk.batches == [10] * 4
    assert await stored(sql) == [(n, "good") for n in range(10)]
    task.cancel()


async def test_a_postgres_that_says_nothing(settings: Settings) -> None:
    """It accepts and never answers: a put ends when its time is over, and a full queue refuses at once."""
    async with _silent() as url, open_desk(replace(settings, database_url=url)) as desk:
        with pytest.raises(Unavailable, match=r"within 0\.2 s"):
            await desk.commits.put((1, "good"), 0.2)
        together = await desk.commits.put_all([(1, "good"), (2, "good")], 0.2)
        assert [type(each) for each in together] == [Unavailable] * 2
        waiting = [asyncio.ensure_future(desk.put(n, "good")) for n in range(group_commit.WAITING_MAX)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="wait for Postgres already"):
            await asyncio.wait_for(desk.put(-1, "good"), 1)
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_postgres_that_is_not_there(settings: Settings, sql: asyncpg.Connection) -> None:
    async with open_desk(replace(settings, database_url="postgresql://127.0.0.1:9/none")) as desk:
        with pytest.raises(Unavailable, match="did not answer"):
            await desk.commits.put((1, "good"), 0.3)
    assert await stored(sql) == []


async def test_what_was_given_up_waits_no_longer(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through an outage of hours, in which everybody comes again and again: it fills no queue, nor the memory."""
    monkeypatch.setattr(group_commit, "WAITING_MAX", 50)
    async with _silent() as url, open_desk(replace(settings, database_url=url)) as desk:
        for _ in range(4):
            puts = [desk.commits.put((n, "good"), 0.1) for n in range(20)]
            told = await asyncio.gather(*puts, desk.commits.put_all([(1, "good")] * 20, 0.1), return_exceptions=True)
            late = {str(each) for each in [*told[:-1], *told[-1]]}  # type: ignore[misc]
            assert late == {"Postgres did not answer within 0.1 s"}
        assert len(desk.commits._waiting) <= 1


async def test_a_row_that_is_locked_by_another(desk: Desk, sql: asyncpg.Connection) -> None:
    """A put that has given up is not written later behind its caller's back, once the lock is gone."""
    async with sql.transaction():
        await sql.execute("lock table notes in access exclusive mode")
        locked = asyncio.ensure_future(desk.commits.put((1, "first"), 30))
        await eventually(lambda: _some(desk.batches))
        with pytest.raises(Unavailable):
            await desk.commits.put((2, "gave up"), 0.2)
    assert await locked == "1: first"
    assert await desk.put(3, "third") == "3: third"
    assert await stored(sql) == [(1, "first"), (3, "third")]


async def test_drained_waits_for_all(desk: Desk, sql: asyncpg.Connection) -> None:
    putting = asyncio.ensure_future(put_all(desk, ["good"] * 700))
    for _ in range(5):  # until every put has begun: how many turns that takes depends on the release of Python
        await asyncio.sleep(0)
    await asyncio.wait_for(desk.commits.drained(), 10)
    assert len(await stored(sql)) == 700
    await putting


NOTES = st.lists(st.sampled_from(["good", "also good", "forbidden", "a\0b", "half \ud800", "bug"]), max_size=60)
FIRST = itertools.count(step=100)


@given(NOTES, st.sets(st.integers(0, 59)))
@examples(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_everyone_gets_exactly_their_own(
    settings: Settings, sql: asyncpg.Connection, notes: list[str], cuts: set[int]
) -> None:
    """Whatever is mixed, whoever gives up, whenever the connection is lost."""
    first = next(FIRST)
    async with open_desk(settings, writers=2) as desk:
        puts: list[asyncio.Future[str]] = []
        for n, note in enumerate(notes):
            puts.append(asyncio.ensure_future(desk.put(first + n, note)))
            if n in cuts:
                await _cut(sql) if n % 2 else puts[n // 2].cancel()
        results = await asyncio.gather(*puts, return_exceptions=True)
    counts = Counter(type(each).__name__ for each in results)
    assert set(counts) <= {"str", "BadRow", "CancelledError"}
    there = dict(await stored(sql))
    for n, (note, result) in enumerate(zip(notes, results, strict=True), first):
        match result:
            case str():
                assert result == f"{n}: {note}"
                assert there[n] == note
            case BadRow():
                assert "good" not in note
                assert n not in there
            case _:
                assert there.get(n, note) == note


async def _cut(sql: asyncpg.Connection) -> None:
    await sql.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1", OURS)


async def _some(found: Sequence[object]) -> bool:
    return bool(found)


@asynccontextmanager
async def _silent() -> AsyncIterator[str]:
    held: list[Callable[[], None]] = []
    server = await asyncio.start_server(lambda _, writer: held.append(writer.close), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"postgresql://callboard@127.0.0.1:{port}/none?sslmode=disable"
    finally:
        server.close()
        for close in held:
            close()
        await server.wait_closed()
