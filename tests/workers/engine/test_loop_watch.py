"""The loop stands still: where, whose fault it isn't, and that nothing ends what somebody has stopped in a debugger."""

import asyncio
import faulthandler
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from redis.exceptions import TimeoutError as RedisTimeoutError

from schemas import Event
from service.core.settings import Settings
from service.core.time_limit import TimeLimit
from tests.board import board_on
from tests.eventually import eventually
from tests.programs import program_of
from workers.engine.lease import BLOCKED_MAX_S, LEASE, Lease
from workers.engine.loop_watch import STILL_S, LoopWatch
from workers.kit import Pipeline

BLOCKED_S = STILL_S + 0.8


class Slept(Event, tag="slept", frozen=True):
    apart: bool


async def odd(event: Slept) -> None:
    async def blocking() -> None:
        time.sleep(BLOCKED_S)  # noqa: ASYNC251 - the mistake that is looked for

    await (asyncio.create_task(blocking()) if event.apart else blocking())


LINE = odd.__code__.co_firstlineno + 2


@pytest.mark.parametrize("apart", [False, True])
async def test_the_step_and_the_line_are_said_once(
    apart: bool, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a task that the step has started, Python 3.11 does not say to which step it belongs."""
    caplog.set_level(logging.WARNING, "callboard.loop")
    async with board_on(settings, program_of(settings, slept=Pipeline(on=Slept, flow=[odd]))) as board:
        await board.ended(await board.send("slept", {"apart": apart}))
        await eventually(lambda: asyncio.sleep(0, _said(caplog)))
    (said,) = _said(caplog)
    location = f"tests/workers/engine/test_loop_watch.py:{LINE}"
    where = location if apart and sys.version_info < (3, 12) else f"step odd ({location})"
    assert f" s in {where}; blocking code belongs into asyncio.to_thread" in said
    assert abs(float(said.removeprefix("the loop stood still for ").split()[0]) - BLOCKED_S) < 0.5


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "callboard.loop"]


@asynccontextmanager
async def watching(lift: Callable[[], None]) -> AsyncIterator[LoopWatch]:
    watch = LoopWatch(lift)
    task = asyncio.create_task(watch.run())
    await asyncio.sleep(0)
    yield watch
    task.cancel()
    await asyncio.wait([task])


async def test_a_timeout_behind_it_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    async with watching(lambda: None) as watch:
        assert not watch.explains(TimeoutError())
        time.sleep(BLOCKED_S)  # noqa: ASYNC251 - as above
        for error in (TimeoutError(), RedisTimeoutError()):
            assert watch.explains(error), "before the watch itself runs again, too"
        assert not watch.explains(ValueError())
        await eventually(lambda: asyncio.sleep(0, not watch.explains(TimeoutError())))


DEBUGGER = {"__name__": "bdb"}  # where the frames of pdb and of what is made of it come from
exec(f"import time\ndef interaction(): time.sleep({BLOCKED_S})\n", DEBUGGER)


async def test_a_debugger_lifts_the_limits_that_run(caplog: pytest.LogCaptureFixture) -> None:
    """Before they fire: they have run out by the time that the loop goes on."""
    caplog.set_level(logging.INFO, "callboard.loop")
    limit = TimeLimit(0.2)
    async with watching(limit.lift) as watch:
        async with limit, TimeLimit(BLOCKED_S / 2) as inner:
            DEBUGGER["interaction"]()  # type: ignore[operator]
            await asyncio.sleep(0.2)
        assert not limit.expired
        assert not inner.expired
        assert watch.debugged()
        (said,) = _said(caplog)
        assert "the worker stood in a debugger for " in said
        with pytest.raises(TimeoutError):
            async with TimeLimit(0.01):
                await asyncio.sleep(5)


@pytest.mark.parametrize("is_debugged", [False, True])
async def test_a_loop_that_hangs_ends_the_worker_but_in_a_debugger(
    is_debugged: bool, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[int] = []
    monkeypatch.setattr(os, "_exit", ends.append)
    monkeypatch.setattr(faulthandler, "dump_traceback", lambda *_, **__: None)
    lease = Lease(settings, [], lambda: 0, lambda: ("ready", None), lambda: is_debugged)
    lease._ticked_at = time.monotonic() - BLOCKED_MAX_S - 1
    lease._beat_at = time.monotonic() - LEASE.total_seconds() / 3
    lease._check_loop()
    assert bool(ends) is not is_debugged
