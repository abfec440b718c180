"""Workers are notified behind the commit; what Redis loses or never got is notified again, and no event waits for an
operator."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import httpx
import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from schemas.identity import uuid7
from service.core import streams
from service.core.servers import open_redis
from service.core.settings import Settings
from service.core.supervise import end
from service.intake import notifier
from service.intake.notifier import Notifier
from tests.board import Board, board_on, serving
from tests.eventually import eventually
from tests.keys import AT_HOME
from tests.servers import NAMES

NOWHERE = "redis://127.0.0.1:9/0"  # discard: nothing listens there
LABELLED = {"text": "Where is my card?", "label": "card_arrival"}


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    async with open_redis(settings) as client:
        yield client


async def notified(redis: Redis) -> list[UUID | None]:
    return [streams.event_id(fields) for _, fields in await redis.xrange(NAMES.work)]


async def test_rings_in_order(redis: Redis) -> None:
    ids = [uuid7() for _ in range(2500)]
    box = Notifier(redis, NAMES)
    running = asyncio.create_task(box.run())
    for event_id in ids:
        box.notify(event_id)

    async def all_notified() -> bool:
        return bool(await redis.xlen(NAMES.work) == len(ids))

    await eventually(all_notified)
    assert await notified(redis) == ids
    await end([running])


async def test_what_waits_at_the_end_is_notified(redis: Redis) -> None:
    ids = [uuid7() for _ in range(3)]
    box = Notifier(redis, NAMES)
    for event_id in ids:
        box.notify(event_id)
    await box.drained()
    assert await notified(redis) == ids


async def test_it_is_bounded_and_the_oldest_fall_out(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "WAITING_MAX", 10)
    ids = [uuid7() for _ in range(25)]
    box = Notifier(redis, NAMES)
    for event_id in ids:
        box.notify(event_id)
    await box.drained()
    assert await notified(redis) == ids[-10:]


async def test_a_redis_that_is_away_costs_no_202(settings: Settings) -> None:
    """The sweeper of a worker that does reach one notifies of what was accepted meanwhile."""
    away = replace(settings, redis_url=NOWHERE)
    async with serving(away) as url, httpx.AsyncClient(headers=AT_HOME, base_url=url, timeout=5) as http:
        answers = [
            await http.post("/events", json={"type": "message.labelled", "data": LABELLED, "id": str(number)})
            for number in range(3)
        ]
        assert [(answer.status_code, answer.json()["status"]) for answer in answers] == [(202, "queued")] * 3
        ready = await http.get("/readyz")
        (degraded,) = ready.json()["degraded"]
        assert (ready.status_code, degraded["part"], degraded["reason"]) == (200, "redis", "away")
        assert datetime.now(UTC) - datetime.fromisoformat(degraded["since"]) < timedelta(seconds=30)
    async with board_on(settings) as board:
        for answer in answers:
            assert (await board.ended(answer.json()["event_id"]))["status"] == "succeeded"


async def test_what_a_redis_forgets_is_notified_again(settings: Settings) -> None:
    async with board_on(settings) as board:  # a worker that has seen this Redis, and goes
        await board.ended(await board.send("message.labelled", LABELLED))
        redis_url = board.settings.redis_url
    async with serving(settings) as url, httpx.AsyncClient(headers=AT_HOME, base_url=url, timeout=5) as http:
        event = {"type": "message.labelled", "data": LABELLED}
        ids = [(await http.post("/events", json=event)).json()["event_id"] for _ in range(20)]
        async with Redis.from_url(redis_url) as redis:
            await eventually(lambda: redis.xlen(NAMES.work))
            await redis.flushdb()
    async with board_on(settings) as board:
        for event_id in ids:
            assert (await board.ended(event_id, 10))["status"] == "succeeded"
        assert [dict(row) for row in await board.sql("select count(*) as n from attempts")] == [{"n": 21}]


async def test_streams_and_groups_may_vanish_while_they_are_read(board: Board) -> None:
    ruins: list[Callable[[], Awaitable[object]]] = [
        lambda: board.redis.xgroup_destroy(NAMES.work, streams.GROUP),
        lambda: board.redis.delete(NAMES.work, NAMES.front),
        board.redis.flushdb,
    ]
    for ruin in ruins:
        ids = [await board.send("message.labelled", LABELLED) for _ in range(3)]
        await ruin()
        ids += [await board.send("message.labelled", LABELLED) for _ in range(3)]
        for event_id in ids:
            assert (await board.ended(event_id))["status"] == "succeeded"
    assert await board.sql("select 1 from work") == []
    assert [dict(row) for row in await board.sql("select distinct outcome from attempts")] == [{"outcome": "succeeded"}]
