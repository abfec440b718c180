"""What runs say while they go on: in batches, in bounds, and never waited for."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from msgspec import json
from redis.asyncio import Redis

from service.core.settings import Settings
from service.core.supervise import end
from service.feed.live_log import Answered, Stepped, Token, log_of, read_log
from tests.eventually import eventually
from tests.servers import NAMES
from workers.engine import run_feed
from workers.engine.claim import Claimed
from workers.engine.run_feed import CHARS_MAX, FeedPublisher, RunFeed
from workers.kit.memory import Step
from workers.models.client import Call


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    async with Redis.from_url(settings.redis_url) as client:
        yield client


def _claimed(claim: int = 1, event_id: UUID | None = None) -> Claimed:
    told = (event_id or uuid4(), "t", None, "/t", "1", "probe", b"{}", "{}", None, None, 1, 0, 0, 0, 0, claim)
    return Claimed(*told, datetime.now(UTC), uuid4())


def _call(reply: str = "") -> Call:
    told: list[Any] = [uuid4(), datetime.now(UTC), "p", 1, "h", "r", "asked", 1, "openai", "m"]
    told += [0, 0, 0.0, True, 0.0, "ok", None, reply, True, True]
    return Call(*told)


async def _entries(redis: Redis, feed: RunFeed, count: int) -> list[Any]:
    async def fact() -> list[Any] | None:
        entries, _ = await read_log(redis, log_of(NAMES, feed.event_id), (0, 0))
        return entries if len(entries) >= count else None

    result = await eventually(fact)
    assert result is not None
    return result


async def test_tokens_go_in_batches_and_wait_for_the_reply_to_be_stored(redis: Redis) -> None:
    publisher = FeedPublisher(redis, NAMES)
    feed, call = publisher.feed(_claimed()), _call("abc")
    for delta in "abc":
        feed.text_delta("s", call, delta)
    held = feed.answered("s", call)
    feed.step(Step("s", datetime.now(UTC), 1.0, "done"))
    running = [asyncio.create_task(publisher.run())]
    await _entries(redis, feed, 1)
    await asyncio.sleep(3 * run_feed.FLUSH_S)
    name, made = "asked.1", call.call_id.hex[:12]
    token = ((1, 2), Token("s", name, made, 0, "abc"))
    assert await _entries(redis, feed, 1) == [token]
    feed.stored(held, is_stored=True)
    told = [token, ((1, 4), Answered("s", name, made, 3)), ((1, 6), Stepped("s", "done", 1.0))]
    assert await _entries(redis, feed, 3) == told
    assert 3500 < await redis.ttl(f"callboard:live:{feed.event_id}") <= 3600
    assert publisher.chars == 0
    await end(running)


async def test_a_claim_that_is_lost_is_not_heard_behind_the_new_one(redis: Redis) -> None:
    publisher = FeedPublisher(redis, NAMES)
    old, new = publisher.feed(_claimed(1)), _call()
    running = [asyncio.create_task(publisher.run())]
    old.text_delta("s", new, "old")
    await _entries(redis, old, 1)
    taken = publisher.feed(_claimed(2, old.event_id))
    taken.text_delta("s", _call(), "new")
    await _entries(redis, old, 2)
    old.text_delta("s", new, " zombie")
    taken.text_delta("s", _call(), "more")
    assert [entry.text for _, entry in await _entries(redis, old, 3)] == ["old", "new", "more"]
    await end(running)


async def test_without_redis_tokens_are_given_up_and_memory_is_bounded() -> None:
    async with Redis(port=1, socket_timeout=0.1) as away:
        publisher = FeedPublisher(away, NAMES)
        running = [asyncio.create_task(publisher.run())]
        feed, call = publisher.feed(_claimed()), _call()
        for _ in range(3 * CHARS_MAX // 100_000):
            feed.text_delta("s", call, "x" * 100_000)
            await asyncio.sleep(0)
        assert CHARS_MAX - 100_000 <= publisher.chars <= CHARS_MAX
        for _ in range(run_feed.FEEDS_MAX + 10):
            publisher.feed(_claimed()).text_delta("s", _call(), "x")
        assert len(publisher._waiting) <= run_feed.FEEDS_MAX
        await end(running)


async def test_a_log_is_read_up_to_a_number_of_entries_and_of_bytes(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the first: what is larger than a page is one by itself."""
    name = log_of(NAMES, uuid4())
    texts = ["a" * 10, "b" * 3_000, "c" * 10, "d" * 10, "e" * 10, "f" * 10]
    for n, text in enumerate(texts, 1):
        await redis.xadd(name, {"d": json.encode(Token("s", "c", "m", 0, text))}, id=f"1-{2 * n}")
    monkeypatch.setattr("service.feed.live_log.PAGE", 3)
    monkeypatch.setattr("service.feed.live_log.PAGE_MAX", 1_000)
    pages, after, more = [], (0, 0), True
    while more:
        page, more = await read_log(redis, name, after)
        pages.append([entry.text[0] for _, entry in page if isinstance(entry, Token)])
        after = page[-1][0]
    assert pages == [["a"], ["b"], ["c", "d", "e"], ["f"]]
    assert await read_log(redis, name, after) == ([], False)
