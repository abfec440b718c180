"""Tasks that a run starts: they can't end the worker, and else they are as they would be without us."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest

from service.core.log import RUN
from service.core.traces import location_of_task
from workers.kit.failures import Escaped, start_task


@pytest.fixture
async def in_a_run() -> AsyncIterator[None]:
    asyncio.get_running_loop().set_task_factory(start_task)
    yield
    asyncio.get_running_loop().set_task_factory(None)


@contextmanager
def running() -> Iterator[None]:
    token = RUN.set(lambda: {"event": "e"})
    try:
        yield
    finally:
        RUN.reset(token)


async def hangs() -> None:
    await asyncio.Event().wait()


async def exits() -> None:
    await asyncio.sleep(0)
    raise SystemExit(3)


async def gives() -> int:
    await asyncio.sleep(0)
    return 7


@pytest.mark.usefixtures("in_a_run")
async def test_what_ends_a_loop_is_an_error_of_its_task() -> None:
    with running():
        task = asyncio.create_task(exits())
    with pytest.raises(Escaped, match="SystemExit: 3"):
        await task


@pytest.mark.usefixtures("in_a_run")
async def test_it_gives_its_result_has_its_name_and_says_where_it_stands() -> None:
    with running():
        task, stands = asyncio.create_task(gives()), asyncio.create_task(hangs(), name="mine")
    assert await task == 7
    assert "coro=<gives() done" in repr(task)
    assert (stands.get_name(), "coro=<hangs() running at" in repr(stands)) == ("mine", True)
    assert "in hangs" in (location_of_task(stands) or "")
    stands.cancel()


@pytest.mark.usefixtures("in_a_run")
async def test_one_that_is_cancelled_before_it_begins_was_never_awaited_by_nobody() -> None:
    """Warnings are errors here: a coroutine that was left unawaited would be one."""
    with running():
        task = asyncio.create_task(gives())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    gc.collect()


@pytest.mark.usefixtures("in_a_run")
async def test_cancelled_while_it_runs_it_is_cancelled() -> None:
    with running():
        task = asyncio.create_task(hangs())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
