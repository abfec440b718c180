"""Upkeep, turn by turn: what is notified again, what is freed, what is buried."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

import sql
from schemas import Event
from schemas.envelope import Attributes, Incoming
from schemas.identity import uuid7
from service.core import streams
from service.core.redis_owner import RedisOwner
from service.core.servers import connect
from service.core.settings import Settings
from service.core.supervise import end
from service.intake.store import Store
from tests.programs import event_type, program_of
from tests.servers import NAMES
from workers.engine import sweeper
from workers.engine.budget.ledger import Ledger
from workers.engine.executor import Deps, Executor
from workers.engine.journal import Journal
from workers.engine.lease import Lease
from workers.engine.resume import Resumer
from workers.engine.settle import Settler
from workers.engine.sweeper import EPOCH_TURNS, Sweeper
from workers.kit import Pipeline

LEASE = {**sql.queries("lease"), **sql.queries("sweeper")}
PACE = 5


class Plain(Event, tag="plain", frozen=True):
    pass


async def nothing(event: Plain) -> None:
    return None


class Desk:
    """A sweeper without a worker around it, and hands to arrange what it will find."""

    def __init__(self, settings: Settings, redis: Redis) -> None:
        self.settings = settings
        self.redis = redis
        self.lease = Lease(settings, [], lambda: 0, lambda: ("ready", None))
        self.lease._held, self.lease._renewed_at = True, time.monotonic() + 60  # it has no heartbeat here
        program = program_of(settings, plain=Pipeline(on=Plain, flow=[nothing]))

        async def wake_in(_: object) -> None:
            return None

        settler = Settler(settings, lambda _: None, wake_in)
        nobody: Any = None  # nothing is run here
        journal = Journal(settings)
        ledger = Ledger(settings, nobody)
        deps = Deps(settings, program.catalog, program.wiring, nobody, nobody, ledger, journal, settler, nobody)
        self.breakers = {"openai/ours": "closed"}
        resumer = Resumer(lambda: dict(self.breakers), PACE)
        self.sweeper = Sweeper(
            settings, redis, self.lease, Executor(deps, self.lease.guard), resumer, RedisOwner(settings)
        )

    async def accept(self, count: int, key: str | None = None) -> list[UUID]:
        store = Store(self.settings, {"plain": event_type(Plain)})
        running = asyncio.create_task(store.run())
        ids = [uuid7() for _ in range(count)]
        made = [Incoming(event_id, "/t", str(event_id), "plain", key, None, Attributes(), b"{}") for event_id in ids]
        await asyncio.gather(*(store.accept(each) for each in made))
        await end([running])
        return ids

    async def do(self, statement: str, *arguments: Any) -> list[Any]:
        connection = await connect(self.settings, "test")
        try:
            return list(await connection.fetch(statement, *arguments))
        finally:
            await connection.close()

    async def long_ago(self) -> None:
        await self.do("update work set notified_at = notified_at - interval '1 minute'")

    async def notified(self) -> list[UUID | None]:
        return [streams.event_id(fields) for _, fields in await self.redis.xrange(NAMES.work)]


@asynccontextmanager
async def _desk(settings: Settings) -> AsyncIterator[Desk]:
    async with Redis.from_url(settings.redis_url) as redis:
        await streams.ensure_group(redis, NAMES.work, streams.GROUP)
        await streams.ensure_group(redis, NAMES.front, streams.GROUP)
        yield Desk(settings, redis)


@pytest.fixture
async def desk(settings: Settings) -> AsyncIterator[Desk]:
    async with _desk(settings) as made:
        for _ in range(EPOCH_TURNS):  # notes which Redis this is
            await made.sweeper.turn()
        yield made


async def test_what_was_never_notified_of_is_notified_once(desk: Desk) -> None:
    ids = await desk.accept(1500)
    assert await desk.sweeper.turn() == 0, "notified a moment ago, as far as Postgres knows"
    await desk.long_ago()
    assert await desk.sweeper.turn() == 1500
    assert sorted(map(str, await desk.notified())) == sorted(map(str, ids))


async def test_a_long_unread_stream_is_not_doubled(desk: Desk) -> None:
    """However long the reader is away: an entry that still waits in the stream is not notified again."""
    ids = await desk.accept(500)
    await streams.notify(desk.redis, ids, NAMES.work)
    await desk.long_ago()
    for _ in range(3):
        assert await desk.sweeper.turn() == 0
    assert len(await desk.notified()) == 500


async def test_what_was_read_and_lost_is_notified_although_others_wait(desk: Desk) -> None:
    first, second = await desk.accept(10), await desk.accept(10)
    await streams.notify(desk.redis, first, NAMES.work)
    read = await streams.read(desk.redis, [NAMES.work], streams.GROUP, "gone", 10)
    await streams.finish(desk.redis, NAMES.work, streams.GROUP, [entry_id for entry_id, _ in read[0][1]])
    await streams.notify(desk.redis, second, NAMES.work)
    await desk.long_ago()
    # The second ten still wait; the first ten were last notified before the moment up to which the group has read.
    await desk.do("update work set notified_at = now() where event_id = any ($1)", second)
    assert await desk.sweeper.turn() == 10
    assert set(await desk.notified()) == {*first, *second}


async def test_a_redis_that_forgot_everything_is_notified_at_once(desk: Desk) -> None:
    ids = await desk.accept(20)
    await streams.notify(desk.redis, ids, NAMES.work)
    await desk.redis.flushdb()
    assert sum([await desk.sweeper.turn() for _ in range(EPOCH_TURNS)]) == 20
    assert set(await desk.notified()) == set(ids)


async def test_a_redis_that_does_not_answer_holds_up_nothing_else(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a cancelled run would go on, and a lost one wait, for as long as that takes."""
    monkeypatch.setattr(sweeper, "ANSWER_S", 0.05)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            pass
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server, Redis.from_url(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}") as redis:
        desk = Desk(settings, redis)
        await desk.accept(1)
        await desk.long_ago()
        async with asyncio.timeout(5):
            assert [await desk.sweeper.turn() for _ in range(3)] == [0, 0, 0]


async def test_only_the_head_of_a_mailbox_is_notified(desk: Desk) -> None:
    ids = await desk.accept(50, key="k")
    await desk.long_ago()
    assert await desk.sweeper.turn() == 1
    places = {row["event_id"]: row["mailbox_seq"] for row in await desk.do("select event_id, mailbox_seq from work")}
    assert await desk.notified() == [min(ids, key=lambda each: places[each])]


async def lose(desk: Desk, event_ids: list[UUID], lost: int, lease_s: float = -1) -> None:
    """A worker claims these events and is lost, or lives; they had been lost `lost` times before."""
    worker = uuid4()
    await desk.do(LEASE["register"], worker, "h", 1, "v", timedelta(seconds=lease_s), 10, ["p"], False)
    claim = "status = 'running', claim = claim + 1, claimed_at = now(), worker = $1, consecutive_losses = $3"
    await desk.do(f"update work set {claim} where event_id = any ($2)", worker, event_ids, lost)


async def test_a_loss_is_no_attempt_and_a_crash_only_for_the_one_suspect(desk: Desk) -> None:
    (alone,) = await desk.accept(1)
    crowd = await desk.accept(3)
    await lose(desk, [alone], lost=2)
    await lose(desk, crowd, lost=2)
    fresh = await desk.accept(2)
    await lose(desk, fresh, lost=0)
    freed = await desk.do(LEASE["rescue"])
    assert {row["event_id"] for row in freed} == {alone, *crowd, *fresh}
    assert {row["event_id"] for row in freed if row["consecutive_losses"] == 1} == set(fresh), "the others wait a while"
    rows = {
        row["event_id"]: row
        for row in await desk.do("select event_id, consecutive_losses, crash_count, attempts, status from work")
    }
    assert [tuple(rows[alone])[1:]] == [(3, 1, 0, "queued")]
    assert {tuple(rows[reader])[1:] for reader in crowd} == {(3, 0, 0, "queued")}
    assert {tuple(rows[each])[1:] for each in fresh} == {(1, 0, 0, "queued")}
    told = await desk.do("select outcome from attempts")
    assert {row["outcome"] for row in told} == {"lost"}


async def test_past_the_deadline_it_is_an_attempt_only_where_the_worker_lives(desk: Desk) -> None:
    orphan, hanging = await desk.accept(2)
    await lose(desk, [orphan], lost=0)
    await lose(desk, [hanging], lost=0, lease_s=60)
    await desk.do("update work set deadline_at = clock_timestamp() - interval '1 minute'")
    await desk.do(LEASE["overdue"])
    await desk.do(LEASE["rescue"])
    rows = {
        row["event_id"]: row for row in await desk.do("select event_id, attempts, consecutive_losses, status from work")
    }
    assert tuple(rows[orphan])[1:] == (0, 1, "queued")
    assert tuple(rows[hanging])[1:] == (1, 0, "scheduled")


async def test_enough_crashes_end_as_a_crash_loop_and_the_neighbours_stay(desk: Desk) -> None:
    poison, neighbour = await desk.accept(2)
    await desk.do("update work set crash_count = 5 where event_id = $1", poison)
    (row,) = await desk.do(LEASE["bury"], 5, [uuid4() for _ in range(10)])
    assert row["event_id"] == poison
    assert [row["event_id"] for row in await desk.do("select event_id from work")] == [neighbour]
    (letter,) = await desk.do("select reason, attempts from dead_letters")
    assert tuple(letter) == ("crash_loop", 0)
    (ended,) = await desk.do("select status from events where event_id = $1", poison)
    assert ended["status"] == "dead"


async def test_what_waits_for_a_model_comes_when_that_is_back(desk: Desk) -> None:
    """One to try a breaker that may close again; once it has closed the others, so many a second; no other's events."""
    waiting = set(await desk.accept(PACE + 2))
    await desk.do("update work set blocked_by = 'anthropic/theirs openai/ours'")
    (other,) = await desk.accept(1)
    await desk.do("update work set blocked_by = 'openai/ours-too' where event_id = $1", other)
    await desk.do("update work set status = 'scheduled', due_at = clock_timestamp() + interval '9 minutes'")

    async def soon() -> set[UUID]:
        await desk.sweeper.turn()
        rows = await desk.do("select event_id from work where due_at < clock_timestamp() + interval '1 minute'")
        return {row["event_id"] for row in rows}

    assert await soon() == set()
    desk.breakers["openai/ours"] = "open"
    assert await soon() == set()
    desk.breakers["openai/ours"] = "half_open"
    first = await soon()
    assert len(first) == 1
    desk.breakers["openai/ours"] = "closed"
    assert len(await soon()) == PACE + 1
    assert await soon() == waiting
    await desk.do("update work set blocked_by = 'openai/ours', due_at = clock_timestamp() + interval '9 minutes'")
    assert await soon() == set(), "who waits now was snoozed behind the closing"
