"""Limits that all workers keep together: the script in a real Redis, and each one's share without it."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
from redis.asyncio import Redis

from prompts import Limits, Target
from service.core.errors import Outage
from service.core.servers import open_redis
from service.core.settings import Settings
from tests.eventually import eventually
from tests.servers import NAMES
from workers.models.rate_limit_shares import AWAY_S, Shared, WorkerShare
from workers.models.rate_limits import PERMIT_MS, SCRIPT, RateLimiter, open_limiters

LIMITED = Target("openai", "ours", limits=Limits(requests_per_min=600, tokens_per_min=60_000, concurrency=50))


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    async with open_redis(settings) as client:
        yield client


def sharing(redis: Redis, workers: int = 1) -> Shared:
    return Shared(redis.register_script(SCRIPT.read_text()), NAMES, lambda: workers)


def limited(**limits: int) -> Target:
    return Target("openai", "ours", limits=Limits(**limits))


async def tried(limiter: RateLimiter, tokens: int = 10, *, made: bool = True, used: int | None = None) -> bool:
    """Whether a call was let through within the time that is waited in place."""
    with suppress(Outage):
        async with limiter.permit(tokens) as permit:
            permit.is_sent, permit.used = made, used
            return True
    return False


async def level(redis: Redis, name: str) -> float:
    (found,) = await redis.hmget("callboard:limit:openai/ours", [name])  # type: ignore[misc]
    return float(found or 0)


async def test_so_many_requests_a_minute_for_all_together(redis: Redis) -> None:
    """Three that ask at once for three times as much as comes: what is let through is what comes, and no more."""
    limiters = [RateLimiter(limited(requests_per_min=1200), sharing(redis)) for _ in range(3)]
    begun = time.monotonic()
    let = [await result for result in asyncio.as_completed([tried(limiters[n % 3]) for n in range(300)])]
    comes = (time.monotonic() - begun) * 20 + 20
    assert 20 <= sum(let) <= comes + 1


async def test_those_who_wait_are_told_different_times(redis: Redis) -> None:
    limiter, waits_s = RateLimiter(limited(requests_per_min=60), sharing(redis)), list[float]()
    assert await tried(limiter)

    async def ask() -> None:
        with pytest.raises(Outage, match="at its limit of 60 requests a minute") as caught:
            async with limiter.permit(10):
                raise AssertionError
        assert caught.value.known_delay
        waits_s.append(caught.value.after_s)

    await asyncio.gather(*(ask() for _ in range(20)), return_exceptions=True)
    apart = [later - sooner for sooner, later in zip(sorted(waits_s), sorted(waits_s)[1:], strict=False)]
    assert waits_s
    assert min(apart) > 0.5, "what comes in a second is for one of them"


async def test_that_nobody_is_sent_away_is_not_yet_room(redis: Redis) -> None:
    """All may be waiting for the time that they were told: only what is left over brings them forward."""
    now = 0.0
    limiter = RateLimiter(limited(requests_per_min=60), sharing(redis), lambda: now)

    async def looked() -> str:
        assert limiter.state == "open"
        assert limiter._deciding is not None
        await limiter._deciding
        return limiter.state

    assert await tried(limiter)
    assert limiter.state == "closed"
    assert not all(await asyncio.gather(*(tried(limiter) for _ in range(6))))
    assert limiter.state == "open"
    now = 1000.0
    assert await looked() == "open", "what comes is still taken as it comes"
    # Three seconds in which nobody came.
    await redis.hincrby("callboard:limit:openai/ours", "at", -3000)  # type: ignore[misc]
    assert await looked() == "closed"


async def test_tokens_are_guessed_before_and_put_right_after(redis: Redis) -> None:
    # a hundred to begin with, and a hundred a second
    limiter = RateLimiter(limited(tokens_per_min=6000), sharing(redis))
    assert await tried(limiter, 100, used=10)
    assert await tried(limiter, 50, used=10), "ninety came back"
    async with asyncio.timeout(1.9):
        assert await tried(limiter, 100, used=1000), "taken for less, since those before took less"
    assert not await tried(limiter, 100), "what was taken too much has to come first"


async def test_what_was_not_made_is_not_counted(redis: Redis) -> None:
    limiter = RateLimiter(limited(requests_per_min=10, tokens_per_min=6000), sharing(redis))
    for _ in range(5):
        assert await tried(limiter, 100, made=False)


async def test_so_many_at_a_time_over_all(redis: Redis) -> None:
    one, other = (RateLimiter(limited(concurrency=2), sharing(redis)) for _ in range(2))
    async with one.permit(1), other.permit(1):
        asking = asyncio.create_task(tried(other))
        _, waiting = await asyncio.wait([asking], timeout=0.2)
        assert waiting
    async with asyncio.timeout(5):
        assert await asking, "one that ended makes room"
    assert await redis.zcard("callboard:permits:openai/ours") == 0


async def test_a_permit_lasts_as_long_as_it_is_renewed(redis: Redis) -> None:
    """One of a worker that is gone runs out by itself; a call that goes on is known again to a Redis that forgot it."""
    permits = "callboard:permits:openai/ours"
    async with open_limiters([limited(concurrency=1)], sharing(redis)) as limiters:
        (limiter,) = limiters.values()
        async with limiter.permit(1):
            ((_, first),) = await redis.zrange(permits, 0, -1, withscores=True)
            seconds, _ = await redis.time()
            assert 0 < first - int(seconds) * 1000 <= PERMIT_MS + 1000
            await redis.flushdb()
            limiter.renew()
            await eventually(lambda: redis.zcard(permits))
            ((_, again),) = await redis.zrange(permits, 0, -1, withscores=True)
            assert again >= first
        await eventually(lambda: _none(redis, permits))
        await redis.zadd(permits, {"of the dead": int(seconds) * 1000 - 1})
        assert await tried(limiter)


async def _none(redis: Redis, name: str) -> bool:
    return not await redis.exists(name)


async def test_a_redis_that_forgot_gives_no_more_than_a_second_of_it(redis: Redis) -> None:
    limiter = RateLimiter(limited(requests_per_min=60), sharing(redis))
    let = 0
    for _ in range(3):
        let += sum(await asyncio.gather(*(_at_once(limiter) for _ in range(10))))
        await redis.flushdb()
    assert let == 3


async def _at_once(limiter: RateLimiter) -> bool:
    try:
        async with asyncio.timeout(0.3):
            return await tried(limiter)
    except TimeoutError:
        return False


async def test_a_pause_is_for_all_and_has_an_end(redis: Redis) -> None:
    one, other = (RateLimiter(LIMITED, sharing(redis)) for _ in range(2))
    one.pause(30)
    with pytest.raises(Outage, match="asked us to wait") as caught:
        async with one.permit(1):
            raise AssertionError
    assert 29 < caught.value.after_s <= 31

    async def told() -> bool:
        return not await tried(other)

    await eventually(told)
    assert await level(redis, "paused_until") > 0
    undeclared = RateLimiter(Target("openai", "other"), sharing(redis))
    undeclared.pause(30)
    assert not await tried(undeclared)
    assert await tried(RateLimiter(Target("openai", "other"), sharing(redis))), "nobody shares what is not declared"


async def test_without_redis_each_has_its_share_and_pays_back(settings: Settings, redis: Redis) -> None:
    """Nothing in sum above the limit: three workers get a third each, from nothing on, and Redis hears of it later."""
    gone = True
    script = redis.register_script(SCRIPT.read_text())

    async def away(*, keys: Sequence[str], args: Sequence[Any]) -> Sequence[int]:
        if gone:
            raise ConnectionRefusedError
        return await script(keys=keys, args=args)  # type: ignore[no-any-return]

    limiter = RateLimiter(limited(requests_per_min=1800, concurrency=9), Shared(away, NAMES, lambda: 3))
    begun = time.monotonic()
    let = sum(await asyncio.gather(*(tried(limiter) for _ in range(100))))
    took_s = time.monotonic() - begun
    assert 1 <= let <= took_s * 10 + 1
    held = [limiter.permit(1) for _ in range(3)]
    for each in held:
        await each.__aenter__()
    with pytest.raises(Outage, match="9 calls at a time"):
        async with limiter.permit(1):
            raise AssertionError
    gone = False
    await asyncio.sleep(AWAY_S + 0.1)
    async with limiter.permit(1):
        assert await level(redis, "requests") <= 30 - let - 3, "what was spent meanwhile"
        await eventually(lambda: redis.zscore("callboard:permits:openai/ours", next(iter(limiter._held))))
    for each in held:
        await each.__aexit__(None, None, None)


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_never_more_than_the_limit_in_sum(seed: int) -> None:
    """On a clock of its own: workers that ask at random, for any tokens, in any minute after a second."""
    chance, limits, workers = random.Random(seed), Limits(requests_per_min=120, tokens_per_min=6000), 4
    shares = [WorkerShare(limits, 0.0) for _ in range(workers)]
    now, let = 0.0, list[tuple[float, int]]()
    while now < 600:
        now += chance.expovariate(20)
        tokens = chance.randint(1, 400)
        wait_s, reason = chance.choice(shares).ask(tokens, 0, workers, now)
        assert (wait_s > 0) == (reason > 0)
        if not reason:
            let.append((now, tokens))
    for end in range(60, 600, 10):
        minute = [tokens for at, tokens in let if at <= end]
        assert len(minute) <= end * 2
        assert sum(minute) <= end * 100
    assert len(let) > 600 * 2 * 0.3, "and a good part of it is used"
