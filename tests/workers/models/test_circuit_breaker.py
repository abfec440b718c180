"""The circuit breaker, on a clock of the test's own."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import islice
from random import Random

import pytest

from workers.models.circuit_breaker import Breaker, BreakerOpen, Policy, Verdict
from workers.models.errors import Fault, Outcome

POLICY = Policy(ratio=0.25, calls_min=20, window_s=60, open_s=10)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def judge(error: Exception) -> Verdict:
    if not isinstance(error, Fault):
        return "neutral"
    return {"server": "failure", "refused": "success"}.get(error.outcome, "neutral")  # type: ignore[return-value]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker("test", judge, POLICY, clock)


async def ok() -> str:
    return "ok"


def fails(outcome: Outcome = "server") -> Callable[[], Awaitable[str]]:
    async def work() -> str:
        raise Fault(outcome, "no")

    return work


async def opened(breaker: Breaker) -> None:
    for _ in range(POLICY.calls_min):
        with pytest.raises(Fault):
            await breaker.call(fails())
    assert breaker.state == "open"


async def test_opens_after_enough_failures_and_stays_so(
    breaker: Breaker, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    await opened(breaker)
    clock.now_s += 9
    with pytest.raises(BreakerOpen) as caught:
        await breaker.call(ok)
    assert 1 <= caught.value.after_s <= 2, "the rest of the time, and a jitter"
    clock.now_s += 1
    await breaker.call(ok)
    lines = [record.getMessage() for record in caplog.records]
    assert [each.split(": ")[0] for each in lines] == ["the breaker of test opens", "the breaker of test closes"]


async def test_a_few_failures_are_no_outage(breaker: Breaker) -> None:
    for _ in range(POLICY.calls_min - 1):
        with pytest.raises(Fault):
            await breaker.call(fails())
    assert breaker.state == "closed"


@pytest.mark.parametrize(("share", "state"), [(0.30, "open"), (0.05, "closed")])
async def test_a_share_of_failures(breaker: Breaker, clock: Clock, share: float, state: str) -> None:
    random = Random(7)
    for _ in range(1000):
        clock.now_s += 0.1
        try:
            await breaker.call(fails() if random.random() < share else ok)
        except BreakerOpen:
            break
        except Fault:
            pass
    assert breaker.state == state


async def test_old_failures_are_forgotten(breaker: Breaker, clock: Clock) -> None:
    for _ in range(POLICY.calls_min * 3):
        clock.now_s += 10
        with pytest.raises(Fault):
            await breaker.call(fails())
    assert breaker.state == "closed"


async def test_half_open_lets_one_of_fifty_through(breaker: Breaker, clock: Clock) -> None:
    await opened(breaker)
    clock.now_s += 10
    assert breaker.state == "half_open"
    probes, answer = 0, asyncio.Event()

    async def probe() -> str:
        nonlocal probes
        probes += 1
        await answer.wait()
        return "ok"

    calls = [asyncio.create_task(breaker.call(probe)) for _ in range(50)]
    async with asyncio.timeout(5):
        for first in islice(asyncio.as_completed(calls), 49):
            with pytest.raises(BreakerOpen):
                await first
        answer.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert (probes, outcomes.count("ok")) == (1, 1)
    assert breaker.state == "closed"


async def test_half_open_lets_calls_of_the_prober_through(breaker: Breaker, clock: Clock) -> None:
    """Two branches of one run: were the second sent away, it would take the probe with it, again and again."""
    await opened(breaker)
    clock.now_s += 10
    one, other, answer = object(), object(), asyncio.Event()
    probe = asyncio.create_task(breaker.call(answer.wait, one))
    await asyncio.wait([probe], timeout=0.01)
    beside = asyncio.create_task(breaker.call(answer.wait, one))
    await asyncio.wait([beside], timeout=0.01)
    for asker in (other, None):
        with pytest.raises(BreakerOpen):
            await breaker.call(ok, asker)
    probe.cancel()
    await asyncio.wait([probe])
    with pytest.raises(BreakerOpen):
        await breaker.call(ok, other)
    answer.set()
    assert await beside
    assert breaker.state == "closed"
    assert await breaker.call(ok, other) == "ok"


async def test_a_failed_probe_opens_it_again_and_tells_its_own_error(breaker: Breaker, clock: Clock) -> None:
    await opened(breaker)
    clock.now_s += 10
    with pytest.raises(Fault, match="no"):
        await breaker.call(fails())
    assert breaker.state == "open"
    clock.now_s += 9.9
    with pytest.raises(BreakerOpen):
        await breaker.call(ok)
    clock.now_s += 0.2
    assert await breaker.call(ok) == "ok"
    assert breaker.state == "closed"


async def test_a_cancelled_probe_leaves_the_next_one_free(breaker: Breaker, clock: Clock) -> None:
    await opened(breaker)
    clock.now_s += 10
    probe = asyncio.create_task(breaker.call(asyncio.Event().wait))
    await asyncio.wait([probe], timeout=0.01)
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    assert breaker.state == "half_open"
    assert await breaker.call(ok) == "ok"


async def test_what_says_nothing_about_health_does_not_count(breaker: Breaker, clock: Clock) -> None:
    for _ in range(100):
        with pytest.raises(Fault):
            await breaker.call(fails("rate_limited"))
    assert breaker.state == "closed"
    await opened(breaker)
    clock.now_s += 10
    with pytest.raises(Fault):
        await breaker.call(fails("rate_limited"))
    assert breaker.state == "half_open", "neither closed nor opened by it"


@pytest.mark.parametrize("late", ["ok", "fault"])
async def test_stragglers_say_nothing_about_now(breaker: Breaker, clock: Clock, late: str) -> None:
    answer = asyncio.Event()

    async def slow() -> str:
        await answer.wait()
        if late == "fault":
            raise Fault("server", "late")
        return "ok"

    stragglers = [asyncio.create_task(breaker.call(slow)) for _ in range(50)]
    await asyncio.wait(stragglers, timeout=0.01)
    await opened(breaker)
    clock.now_s += 9
    answer.set()
    outcomes = await asyncio.gather(*stragglers, return_exceptions=True)
    assert {str(outcome) for outcome in outcomes} == {"late" if late == "fault" else "ok"}
    assert breaker.state == "open"
    clock.now_s += 1
    assert breaker.state == "half_open", "the time of opening has not moved"


async def test_stragglers_do_not_open_it_again(breaker: Breaker, clock: Clock) -> None:
    answer = asyncio.Event()

    async def slow() -> str:
        await answer.wait()
        raise Fault("server", "late")

    stragglers = [asyncio.create_task(breaker.call(slow)) for _ in range(50)]
    await asyncio.wait(stragglers, timeout=0.01)
    await opened(breaker)
    clock.now_s += 10
    await breaker.call(ok)
    answer.set()
    await asyncio.gather(*stragglers, return_exceptions=True)
    assert breaker.state == "closed"


async def _calls_until_open(share: float, seed: int, calls: int) -> int | None:
    """How many calls of the policy that is shipped, four a second, went through before it opened; None: it did not."""
    clock, random = Clock(), Random(seed)
    breaker = Breaker("test", judge, Policy(), clock)
    for n in range(calls):
        clock.now_s += random.expovariate(4)
        with suppress(Fault):
            await breaker.call(fails() if random.random() < share else ok)
        if breaker.state == "open":
            return n + 1
    return None


async def test_thirty_in_a_hundred_open_it_and_five_do_not() -> None:
    """A thousand calls each, two hundred times: at 30 % it always opens, mostly at once, at 5 % never by chance."""
    opened = {share: [await _calls_until_open(share, seed, 1000) for seed in range(200)] for share in (0.3, 0.05)}
    took = sorted(opening for opening in opened[0.3] if opening)
    assert len(took) == 200
    assert took[100] <= 30
    assert took[190] <= 100
    assert opened[0.05] == [None] * 200


async def test_what_fails_for_all_opens_it_at_once_and_is_the_reason(clock: Clock) -> None:
    breaker = Breaker("test", lambda error: "fatal", POLICY, clock)
    with pytest.raises(Fault):
        await breaker.call(fails("setup"))
    assert breaker.state == "open"
    with pytest.raises(BreakerOpen, match=r"test is open: no$"):
        await breaker.call(ok)
    clock.now_s += 10
    assert await breaker.call(ok) == "ok"
    assert breaker.state == "closed"
    assert breaker.answered_s_ago == 0


async def test_a_bug_is_no_answer(breaker: Breaker, clock: Clock) -> None:
    """Of a provider's own file, say: half open it closes nothing."""

    async def work() -> str:
        raise KeyError("choices")

    await opened(breaker)
    clock.now_s += POLICY.open_s
    with pytest.raises(KeyError):
        await breaker.call(work)
    assert breaker.state == "half_open"
    assert await breaker.call(ok) == "ok"
    assert breaker.state == "closed"
