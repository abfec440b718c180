"""Things whose time limits share timers: here, futures."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core import deadlines
from service.core.deadlines import Deadlines

LIMITS_S = st.sampled_from([0.5, 1.0, 3.0])
# When it is held, for how long, and when others are done with it (None: never).
HELD = st.tuples(st.floats(0, 10), LIMITS_S, st.none() | st.floats(0, 5))


class Late(Exception):
    pass


def late(future: "asyncio.Future[Any]", limit_s: float) -> None:
    future.set_exception(Late(limit_s))


class VirtualTime(asyncio.SelectorEventLoop):
    """A loop whose clock goes to the next timer as soon as there is nothing else to do."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def run_in_virtual_time(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        runner.run(work)


@given(st.lists(HELD, max_size=40))
def test_each_future_is_done_by_others_or_late_at_its_own_time(held: list[tuple[float, float, float | None]]) -> None:
    def done(future: "asyncio.Future[str]") -> None:
        if not future.done():
            future.set_result("done")

    async def one(
        limits: Deadlines[asyncio.Future[Any]], begins_s: float, limit_s: float, done_s: float | None
    ) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(begins_s)
        future: asyncio.Future[str] = loop.create_future()
        begun = loop.time()
        limits.hold(future, limit_s)
        if done_s is not None:
            loop.call_at(begun + done_s, done, future)
        (came,) = await asyncio.gather(future, return_exceptions=True)
        took_s = loop.time() - begun
        if came == "done":
            assert done_s is not None
            assert took_s == pytest.approx(done_s)
        else:
            assert isinstance(came, Late)
            assert came.args == (limit_s,)
            assert took_s == pytest.approx(limit_s)
        assert took_s <= limit_s + 0.001

    async def all_of_them() -> None:
        limits = Deadlines[asyncio.Future[Any]](late)
        await asyncio.gather(*(one(limits, *each) for each in held))

    run_in_virtual_time(all_of_them())


def test_one_that_takes_its_time_does_not_keep_those_behind_it() -> None:
    async def many() -> None:
        limits, loop = Deadlines[asyncio.Future[Any]](late), asyncio.get_running_loop()
        slow: asyncio.Future[None] = loop.create_future()
        limits.hold(slow, 60.0)
        for _ in range(10 * deadlines.CLEARED_MIN):
            quick: asyncio.Future[None] = loop.create_future()
            limits.hold(quick, 60.0)
            quick.set_result(None)
        assert len(limits._held[60.0]._timed) <= deadlines.CLEARED_MIN
        slow.set_result(None)

    asyncio.run(many())


def test_there_is_one_timer_for_each_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    async def some() -> None:
        limits, loop, timers = Deadlines[asyncio.Future[Any]](late), asyncio.get_running_loop(), list[float]()
        call_at = loop.call_at

        def counted(when: float, *rest: Any, **options: Any) -> asyncio.TimerHandle:
            timers.append(when)
            return call_at(when, *rest, **options)

        monkeypatch.setattr(loop, "call_at", counted)
        futures: list[asyncio.Future[None]] = [loop.create_future() for _ in range(6)]
        for future, limit_s in zip(futures, (1.0, 2.0) * 3, strict=True):
            limits.hold(future, limit_s)
        assert len(timers) == 2
        for future in futures:
            future.set_result(None)

    asyncio.run(some())
