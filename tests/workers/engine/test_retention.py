"""What is forgotten, and what is not."""

from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from schemas import Event
from schemas.identity import uuid7
from service.core import streams
from service.core.servers import Connection, connect
from service.core.settings import Settings
from tests.board import board_on
from tests.programs import program_of
from tests.servers import NAMES
from workers.engine import dead_letter_relay, retention
from workers.engine.lease import Lease
from workers.engine.retention import BATCH, retain
from workers.kit import Pipeline


class Plain(Event, tag="plain", frozen=True):
    pass


async def nothing(event: Plain) -> None:
    return None


async def test_retention_forgets_what_ended_long_ago_and_nothing_else(settings: Settings) -> None:
    program = program_of(settings, plain=Pipeline(on=Plain, flow=[nothing]))
    async with board_on(settings, program) as board:
        old, young = [await board.ended(await board.send("plain", {})) for _ in range(2)]
        waiting = await board.send("plain", {}, dueat="2099-01-01T00:00:00Z")
        age = "interval '40 days'"
        aged = uuid_days_ago(40)
        for table in ("attempts", "events"):
            await board.sql(f"update {table} set event_id = $2 where event_id = $1", UUID(old["event_id"]), aged)
        await board.sql(f"update events set finished_at = finished_at - {age} where event_id = $1", aged)
        assert await retain(settings, board.redis, board.workers[0].lease) in (
            0,
            1,
        )  # or the worker's own cron was first
        left = {str(row["event_id"]) for row in await board.sql("select event_id from events")}
        assert left == {young["event_id"], waiting}
        assert {str(row["event_id"]) for row in await board.sql("select event_id from attempts")} == {young["event_id"]}


async def test_what_letters_keep_for_longer_does_not_keep_others_from_being_forgotten(
    settings: Settings, connection: Connection, redis: Redis
) -> None:
    dead = [uuid_days_ago(50) for _ in range(BATCH)]
    ended, waits = uuid_days_ago(45), uuid_days_ago(44)
    for ids, status in ((dead, "dead"), ([ended], "succeeded"), ([waits], "open")):
        await connection.execute(
            "insert into events (event_id, source, id, type, data, status, finished_at)"
            " select id, '/t', id::text, 'plain', '{}', $2, clock_timestamp() - interval '40 days'"
            " from unnest($1::uuid[]) as id",
            ids,
            status,
        )
    await _write_letters(connection, dead, days_ago=40)
    assert await retain(settings, redis, _lease(settings)) == 1
    left = {row["event_id"] for row in await connection.fetch("select event_id from events")}
    assert left == {*dead, waits}


async def test_letters_workers_and_readers_go_when_their_time_has_come(
    settings: Settings, connection: Connection, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    young, old, unread = uuid7(), uuid7(), uuid7()
    await _write_letters(connection, [young], days_ago=89)
    await _write_letters(connection, [old, unread], days_ago=91)
    await connection.execute("update dead_letters set relayed = dead_id <> $1", unread)
    for hours, state in ((25, "dead"), (25, "ready"), (23, "stopped")):
        await connection.execute(
            "insert into workers (worker, host, pid, version, lease_until, state, slots, in_flight, pipelines)"
            " values (gen_random_uuid(), 'h', 1, 'test', now() - make_interval(hours => $1), $2, 1, 0, '{}')",
            hours,
            state,
        )
    monkeypatch.setattr(retention, "GONE_MS", -1)
    await streams.ensure_group(redis, NAMES.work, streams.GROUP)
    await streams.notify(redis, [young], NAMES.work)
    for reader in ("has one pending", "has none"):
        await streams.read(redis, [NAMES.work], streams.GROUP, reader, 1)

    await retain(settings, redis, _lease(settings))
    assert {row["dead_id"] for row in await connection.fetch("select dead_id from dead_letters")} == {young, unread}
    assert {row["state"] for row in await connection.fetch("select state from workers")} == {"ready", "stopped"}
    readers = await redis.xinfo_consumers(NAMES.work, streams.GROUP)
    assert [each["name"] for each in readers] == [b"has one pending"]


async def test_the_dead_stream_is_bounded(
    settings: Settings, connection: Connection, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letter_relay, "DEAD_MAX", 100)
    letters = [uuid7() for _ in range(450)]
    await _write_letters(connection, letters, days_ago=0)
    await dead_letter_relay.relay_dead_letters(settings, connection, redis)
    kept = [fields[b"dead_id"].decode() for _, fields in await redis.xrange(NAMES.dead)]
    assert 100 <= len(kept) < 300, "Redis trims by nodes of its own"
    assert kept == [str(letter) for letter in letters[-len(kept) :]]


async def test_the_dead_stream_goes_as_its_letters_go(settings: Settings, connection: Connection, redis: Redis) -> None:
    old, young, discarded = uuid7(), uuid7(), uuid7()
    await _write_letters(connection, [old], days_ago=91)
    await _write_letters(connection, [young, discarded], days_ago=1)
    await connection.execute("update dead_letters set tenant = 'acme' where dead_id = $1", young)
    await dead_letter_relay.relay_dead_letters(settings, connection, redis)
    entries = [fields for _, fields in await redis.xrange(NAMES.dead)]
    assert [(entry[b"dead_id"].decode(), entry[b"tenant"]) for entry in entries] == [
        (str(old), b"default"),
        (str(young), b"acme"),
        (str(discarded), b"default"),
    ]
    await retain(settings, redis, _lease(settings))
    left = [fields[b"dead_id"].decode() for _, fields in await redis.xrange(NAMES.dead)]
    assert left == [str(young), str(discarded)]
    await connection.execute("delete from dead_letters")
    await retain(settings, redis, _lease(settings))
    assert await redis.xlen(NAMES.dead) == 0
    await _write_letters(connection, [later := uuid7()], days_ago=0)
    await dead_letter_relay.relay_dead_letters(settings, connection, redis)
    await retain(settings, redis, _lease(settings))
    assert [fields[b"dead_id"].decode() for _, fields in await redis.xrange(NAMES.dead)] == [str(later)]


@pytest.mark.parametrize(("days", "left"), [(0, 3), (10, 2)])
async def test_states_and_documents_go_by_age_only_where_somebody_says_so(
    settings: Settings, connection: Connection, redis: Redis, days: int, left: int
) -> None:
    for key, age in (("old", 11), ("young", 9), ("waited for", 11)):
        await connection.execute(
            "insert into states (tenant, partition_key, type, value, event_id, written_at)"
            " values ('default', $1, 'Memory', '{}', gen_random_uuid(), now() - $2 * interval '1 day')",
            key,
            age,
        )
        await connection.execute(
            "insert into documents (collection, id, text, embedding, written_at)"
            " values ('help', $1, 'a', '[1]', now() - $2 * interval '1 day')",
            key,
            age if key == "old" else 9,
        )
    await connection.execute(
        "insert into work (event_id, tenant, partition_key, status, due_at)"
        " values ($1, 'default', 'waited for', 'scheduled', now())",
        uuid7(),
    )
    set_so = replace(settings, state_retention_days=days, document_retention_days=days)
    await retain(set_so, redis, _lease(set_so))
    for table in ("states", "documents"):
        assert await connection.fetchval(f"select count(*) from {table}") == left, table


async def test_the_record_of_operations_outlives_its_events_and_ends(
    settings: Settings, connection: Connection, redis: Redis
) -> None:
    event_id = uuid_days_ago(40)
    await connection.execute(
        "insert into events (event_id, source, id, type, data, status, finished_at)"
        " values ($1, '/t', 'a', 'plain', '{}', 'succeeded', now() - interval '40 days')",
        event_id,
    )
    for days in (40, 366):
        await connection.execute(
            "insert into operations (op_id, at, actor, action, event_id)"
            " values (gen_random_uuid(), now() - $1 * interval '1 day', 'cb_12345678', 'replay', $2)",
            days,
            event_id,
        )
    assert await retain(settings, redis, _lease(settings)) == 1
    rows = await connection.fetch("select event_id, now() - at < interval '41 days' as young from operations")
    assert [(row["event_id"], row["young"]) for row in rows] == [(event_id, True)]


@pytest.fixture
async def connection(settings: Settings) -> AsyncIterator[Connection]:
    held = await connect(settings, "test")
    yield held
    await held.close()


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    async with Redis.from_url(settings.redis_url) as client:
        yield client


async def _write_letters(connection: Connection, ids: list[UUID], days_ago: int) -> None:
    await connection.execute(
        "insert into dead_letters (dead_id, origin, event_id, type, reason, error, attempts, event, at)"
        """ select id, id::text, id, 'plain', 'rejected', '{"message": "no"}', 1, '{}',"""
        " clock_timestamp() - $2 * interval '1 day' from unnest($1::uuid[]) with ordinality as t (id, n) order by n",
        ids,
        days_ago,
    )


def _lease(settings: Settings) -> Lease:
    return Lease(settings, [], lambda: 0, lambda: ("ready", None))


def uuid_days_ago(days: int) -> UUID:
    return UUID(int=uuid7().int - (days * 86_400_000 << 80))
