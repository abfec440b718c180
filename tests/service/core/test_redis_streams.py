"""The streams, one command at a time, on a real Redis."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from schemas.identity import uuid7
from service.core import streams
from service.core.servers import open_redis
from service.core.settings import Settings
from tests.servers import NAMES

NAME = "callboard:test"
GROUP = "readers"


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    async with open_redis(settings) as client:
        yield client


async def test_a_ring_is_an_event_id(redis: Redis) -> None:
    ids = [uuid7() for _ in range(3)]
    await streams.notify(redis, ids, NAME)
    assert [streams.event_id(fields) for _, fields in await redis.xrange(NAME)] == ids
    assert streams.event_id({}) is streams.event_id({b"id": b"short"}) is None


async def test_a_ring_for_nobody_makes_no_stream(redis: Redis) -> None:
    await streams.notify(redis, [], NAME)
    assert await redis.exists(NAME) == 0


async def test_a_group_begins_at_the_beginning(redis: Redis) -> None:
    await streams.notify(redis, [uuid7(), uuid7()], NAME)
    assert await streams.read(redis, [NAME], GROUP, "a", 10) == []  # no group yet: made now
    ((name, entries),) = await streams.read(redis, [NAME], GROUP, "a", 10)
    assert (name, len(entries)) == (NAME, 2)
    await streams.ensure_group(redis, NAME, GROUP)  # a second time changes nothing
    assert await streams.read(redis, [NAME], GROUP, "a", 10) == []


async def test_what_was_read_is_pending_until_it_is_finished(redis: Redis) -> None:
    await streams.ensure_group(redis, NAME, GROUP)
    await streams.notify(redis, [uuid7() for _ in range(5)], NAME)
    ((_, first),) = await streams.read(redis, [NAME], GROUP, "a", 3)
    assert await streams.read(redis, [NAME], GROUP, "a", 10, after="0") == [(NAME, first)]
    assert await streams.read(redis, [NAME], GROUP, "b", 10, after="0") == [(NAME, [])]
    await streams.finish(redis, NAME, GROUP, [entry_id for entry_id, _ in first])
    await streams.finish(redis, NAME, GROUP, [])
    assert await streams.read(redis, [NAME], GROUP, "a", 10, after="0") == [(NAME, [])]
    assert (await redis.xpending(NAME, GROUP))["pending"] == 0
    assert await redis.xlen(NAME) == 2


async def test_what_another_left_is_taken_over(redis: Redis) -> None:
    assert await streams.take_over(redis, NAME, GROUP, "b", 0, 10) == []  # no such group
    await streams.ensure_group(redis, NAME, GROUP)
    await streams.notify(redis, [uuid7() for _ in range(3)], NAME)
    ((_, entries),) = await streams.read(redis, [NAME], GROUP, "a", 10)
    await redis.xdel(NAME, entries[0][0])  # Redis 7 forgets that it is pending, one before keeps it
    assert await streams.take_over(redis, NAME, GROUP, "b", 60_000, 10) == []
    taken = await streams.take_over(redis, NAME, GROUP, "b", 0, 10)
    assert [entry for entry in taken if entry[1]] == entries[1:]
    await streams.finish(redis, NAME, GROUP, [entry_id for entry_id, _ in taken])
    assert (await redis.xpending(NAME, GROUP))["pending"] == 0


async def test_several_streams_are_read_in_one_go(redis: Redis) -> None:
    for name in ("callboard:x", "callboard:y"):
        await streams.ensure_group(redis, name, GROUP)
        await streams.notify(redis, [uuid7()], name)
    found = await streams.read(redis, ["callboard:x", "callboard:y"], GROUP, "a", 1)
    assert [(name, len(entries)) for name, entries in found] == [("callboard:x", 1), ("callboard:y", 1)]


async def test_the_epoch_names_one_memory(redis: Redis) -> None:
    first = await streams.epoch(redis, NAMES)
    assert first
    assert await streams.epoch(redis, NAMES) == first
    await redis.flushdb()
    assert await streams.epoch(redis, NAMES) not in ("", first)
