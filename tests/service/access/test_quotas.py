"""Quotas by a virtual clock: APIs and their Redis share it, the script and all of its accounting are the real ones."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from msgspec.structs import replace
from redis.asyncio import Redis

from service.access import quotas
from service.access.keys import Key
from service.access.quotas import LEASE_S, Quotas
from service.access.rates import Bucket, read_rate
from service.core.settings import Settings
from service.core.streams import names_of

NOW: Final = "redis.call('TIME')"
ENDS: Final = "math.ceil((drained - now) / 1000)"
NUMBERS: Final = itertools.count()
RATES: Final = st.sampled_from(
    ["1/s", "3/s", "10/s", "97/s", "5000/s", "9999999/s", "7/min", "100/min", "1/h", "100/h"]
)
STEPS: Final = st.lists(
    st.tuples(st.sampled_from([0.0, 0.001, 0.02, 0.3, 1.0, 30.0]), st.integers(0, 2), st.sampled_from([1, 1, 2, 40])),
    max_size=25,
)


class Time:
    """Of the APIs, in seconds; and by a key, of Redis, whose entries last for as long as the test does."""

    def __init__(self, redis: Redis) -> None:
        self.now = 1_000.0
        self._redis: Final = redis

    def __call__(self) -> float:
        return self.now

    async def go_on(self, seconds: float) -> None:
        self.now += seconds
        clock_s = int(self.now)
        await self._redis.hset("clock", mapping={"s": clock_s, "us": round((self.now - clock_s) * 1e6)})  # type: ignore[misc]


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    async with Redis.from_url(settings.redis_url) as client:
        yield client


@pytest.fixture
async def virtual(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Time:
    assert (quotas.SCRIPT.count(NOW), quotas.SCRIPT.count(ENDS)) == (1, 1)
    script = quotas.SCRIPT.replace(NOW, "redis.call('HMGET', 'clock', 's', 'us')").replace(ENDS, "600000")
    monkeypatch.setattr(quotas, "SCRIPT", script)
    monkeypatch.setattr(quotas, "DEADLINE_S", 10.0)
    time = Time(redis)
    await time.go_on(0)
    return time


def key_with(rate: str, max_open: int | None = None) -> Key:
    return Key(f"cb_{next(NUMBERS)}", "default", frozenset(("ingest",)), read_rate(rate), max_open)


def apis(settings: Settings, redis: Redis, time: Time, count: int) -> list[Quotas]:
    pool: Any = None  # nothing is counted in Postgres here
    return [Quotas(names_of(settings), redis, pool, time) for _ in range(count)]


@given(RATES, STEPS, st.integers(1, 3))
@examples(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_time_sees_more_than_the_rate_allows(
    settings: Settings, redis: Redis, virtual: Time, text: str, steps: list[tuple[float, int, int]], count: int
) -> None:
    """However events are spread over APIs and time; and who comes again when it is told to is let in."""
    fleet, key, rate = apis(settings, redis, virtual, count), key_with(text), read_rate(text)
    let_in: list[tuple[float, int]] = []
    for pause_s, which, amount in steps:
        await virtual.go_on(pause_s)
        granted, over = await fleet[which % count].admit(key, amount)
        let_in.append((virtual.now, granted))
        assert (granted == amount) is (over is None)
        if over is not None and count == 1:
            await virtual.go_on(over.retry_after_s)
            rest = min(amount - granted, rate.count)
            assert await fleet[0].admit(key, rest) == (rest, None)
            let_in.append((virtual.now, rest))
    for first in range(len(let_in)):
        events = 0
        for at, granted in let_in[first:]:
            events += granted
            window_s = at - let_in[first][0] + LEASE_S
            assert events <= rate.count + window_s / rate.apart_s + 1e-3


@given(RATES, st.lists(st.tuples(st.floats(0, 3), st.integers(0, 200), st.integers(-50, 50)), max_size=20))
@examples(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_script_counts_as_the_bucket_does(
    settings: Settings, redis: Redis, virtual: Time, text: str, calls: list[tuple[float, int, int]]
) -> None:
    """To a microsecond for each call, by which Redis rounds up."""
    rate, bucket, name = read_rate(text), Bucket(), f"bucket {next(NUMBERS)}"
    (api,) = apis(settings, redis, virtual, 1)
    for number, (pause_s, amount, before) in enumerate(calls):
        await virtual.go_on(round(pause_s, 6))
        now = virtual.now
        granted, drains_us = await api._call(name, rate.count, rate.period_s * 1_000_000, amount, before)
        bucket.add(now, rate, before)
        assert abs(granted - min(amount, bucket.room(now, rate))) <= number / 1e6 / rate.apart_s + 1
        bucket.add(now, rate, granted)
        assert abs(max(0.0, bucket.drained_at - now) - drains_us / 1e6) <= (number + 1) * 2e-6
        bucket.drained_at = now + drains_us / 1e6


async def test_who_asks_while_another_is_being_answered(
    settings: Settings, redis: Redis, virtual: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script has granted all to one API, which does not know it yet, when the other one asks."""
    first, second = apis(settings, redis, virtual, 2)
    key, counted, go_on = key_with("10/min"), asyncio.Event(), asyncio.Event()
    call = first._call

    async def slowly(*arguments: Any) -> tuple[int, int]:
        answer = await call(*arguments)
        counted.set()
        await go_on.wait()
        return answer

    monkeypatch.setattr(first, "_call", slowly)
    asking = [asyncio.ensure_future(first.admit(key, 1)) for _ in range(4)]
    asking.append(asyncio.ensure_future(first.admit(key, 20)))
    await counted.wait()
    granted, over = await second.admit(key, 10)
    go_on.set()
    answers = await asyncio.gather(*asking)
    assert (granted, over and over.retry_after_s) == (0, 60)
    assert [each for each, _ in answers] == [1, 1, 1, 1, 6]
    assert answers[4][1] is not None
    assert answers[4][1].retry_after_s == 60


def at_once(admitting: Coroutine[Any, Any, tuple[int, Any]]) -> int:
    """How many were let in; raises AssertionError where that had to wait."""
    try:
        admitting.send(None)
    except StopIteration as answered:
        return int(answered.value[0])
    raise AssertionError("it waits")


def gated(api: Quotas, monkeypatch: pytest.MonkeyPatch, *, answers: bool) -> asyncio.Event:
    """While it is clear, the API's queries do not reach Redis, or with `answers` their answers do not come back."""
    call, gate = api._call, asyncio.Event()

    async def slowly(*arguments: Any) -> tuple[int, int]:
        if answers:
            answer = await call(*arguments)
            await gate.wait()
            return answer
        await gate.wait()
        return await call(*arguments)

    monkeypatch.setattr(api, "_call", slowly)
    return gate


async def renewed(api: Quotas, key: Key) -> None:
    """The API's query in the background, if there is one, is answered."""
    if (query := api._leases[key.prefix].query) is not None:
        await query


@pytest.mark.parametrize("answers", [False, True], ids=["queried late", "answered late"])
@pytest.mark.parametrize("slow", [False, True], ids=["as busy as before", "less busy"])
async def test_two_that_renew_early_let_in_no_more_than_the_rate(
    settings: Settings, redis: Redis, virtual: Time, monkeypatch: pytest.MonkeyPatch, answers: bool, slow: bool
) -> None:
    """Both use their leases up during their queries; other events wait for those, and the last ones find nothing."""
    fleet, key, begun, let_in = apis(settings, redis, virtual, 2), key_with("1000/s"), virtual.now, 0
    for _ in range(10):
        await virtual.go_on(0.002)
        for api in fleet:
            let_in += (await api.admit(key, 5))[0]
            await renewed(api, key)
    await virtual.go_on(LEASE_S * 0.6)
    if slow:  # then each needs less than it has left
        for api in fleet:
            let_in += at_once(api.admit(key, 1))
            await renewed(api, key)
        await virtual.go_on(LEASE_S * 0.6)
    gates = [gated(api, monkeypatch, answers=answers) for api in fleet]
    leases = [api._leases[key.prefix] for api in fleet]
    for api, lease in zip(fleet, leases, strict=True):
        let_in += at_once(api.admit(key, 1 if slow else 20))
        await asyncio.sleep(0)  # the query begins
        assert lease.query is not None
        assert lease.left > 0
        while lease.left:
            let_in += at_once(api.admit(key, 1))
    waiting = [asyncio.ensure_future(api.admit(key, many)) for api in fleet for many in (1, 30)]
    for gate in gates:
        gate.set()
    let_in += sum(granted for granted, _ in await asyncio.gather(*waiting))
    for api in fleet * 2:
        let_in += (await api.admit(key, 1000))[0]
    allowed = 1000 + (virtual.now - begun) * 1000
    assert (1000 if slow else allowed - 10) <= let_in <= allowed  # a slow key uses its rate in part only


async def test_what_is_left_is_kept_for_who_waits_for_more(
    settings: Settings, redis: Redis, virtual: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query for an event that waits gives the lease back: an event that comes then waits for the answer, too."""
    (api,), key = apis(settings, redis, virtual, 1), key_with("1000/s")
    for _ in range(2):
        await virtual.go_on(0.002)
        await api.admit(key, 5)
    gate = gated(api, monkeypatch, answers=False)
    much = api._leases[key.prefix].left + 1
    assert much > 10
    first = asyncio.ensure_future(api.admit(key, much))
    for _ in range(3):
        await asyncio.sleep(0)
    second = asyncio.ensure_future(api.admit(key, 1))
    await asyncio.sleep(0)
    assert not second.done()
    gate.set()
    assert [*await asyncio.gather(first, second)] == [(much, None), (1, None)]


async def test_a_busy_key_waits_for_redis_only_where_its_rate_is_reached(
    settings: Settings, redis: Redis, virtual: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However its events come: one by one, or 64 at once behind each commit; each answer takes 5 ms."""
    for together, pause_s in ((2, 0.001), (64, 0.02)):
        (api,), key = apis(settings, redis, virtual, 1), key_with("5000/s")
        gate = gated(api, monkeypatch, answers=True)
        gate.set()
        for round_number in range(200):
            await virtual.go_on(pause_s)
            if round_number < 2:  # it is not known yet that the key is busy
                await api.admit(key, together)
            else:
                gate.clear()
                assert sum(at_once(api.admit(key, 1)) for _ in range(together)) == together
            await virtual.go_on(0.005)
            gate.set()
            await renewed(api, key)


async def test_what_an_api_has_not_used_comes_back(settings: Settings, redis: Redis, virtual: Time) -> None:
    """It takes more than it needs at once, since it was busy; a lease that is over serves nobody, and is given back."""
    busy, idle = apis(settings, redis, virtual, 2)
    key = key_with("1000/s")
    for _ in range(20):
        await virtual.go_on(0.002)
        assert await busy.admit(key, 10) == (10, None)
    await renewed(busy, key)
    lease = busy._leases[key.prefix]
    assert 0 < lease.left <= 1000 * LEASE_S
    left = lease.left
    await virtual.go_on(LEASE_S)
    assert lease.usable(virtual.now) == 0
    rest = (await idle.admit(key, 2000))[0]
    assert 0 < rest <= 1000 - left
    granted, _ = await busy.admit(key, 1000)
    assert granted == left


async def test_few_events_cost_a_round_trip(
    settings: Settings, redis: Redis, virtual: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the rate, above it, and for keys that have none."""
    (api,) = apis(settings, redis, virtual, 1)
    key, calls = key_with("5000/s"), itertools.count()
    call = api._call

    async def counted(*arguments: Any) -> tuple[int, int]:
        next(calls)
        return await call(*arguments)

    monkeypatch.setattr(api, "_call", counted)
    granted = 0
    for _ in range(20_000):  # two seconds of twice the rate
        virtual.now += 0.0001
        if virtual.now * 1000 % 1 < 0.1:
            await virtual.go_on(0)
        granted += (await api.admit(key, 1))[0]
    assert 14_000 <= granted <= 15_000 + 5_000 * LEASE_S
    assert next(calls) < 300
    for free in (None, replace(key, rate=None)):
        assert await api.admit(free, 7) == (7, None)
    assert next(calls) < 300
