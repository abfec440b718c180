"""The clock of a time limit stands while user code waits for us, and only then."""

import asyncio

import pytest

from service.core.time_limit import TimeLimit, our_wait


async def _waits_then_hangs(limit: TimeLimit, wait_s: float) -> None:
    async with limit:
        with our_wait():
            await asyncio.sleep(wait_s)
        assert not limit.expired
        await asyncio.Event().wait()


async def test_time_outside_of_our_waits_counts() -> None:
    limit = TimeLimit(0.05)
    with pytest.raises(TimeoutError):
        await _waits_then_hangs(limit, 0)
    assert limit.expired


async def test_the_clock_stands_while_we_wait_and_goes_on_afterwards() -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    limit = TimeLimit(0.1)
    with pytest.raises(TimeoutError):
        await _waits_then_hangs(limit, 0.3)
    assert 0.39 < loop.time() - begun < 2
    assert 0.29 < limit.waited_s < 1


async def test_waits_side_by_side_count_once_and_stop_the_clock_for_all() -> None:
    async def wait() -> None:
        with our_wait():
            await asyncio.sleep(0.2)

    async with TimeLimit(0.1) as limit:
        await asyncio.gather(wait(), wait(), wait())
    assert 0.19 < limit.waited_s < 0.5


async def test_each_limit_around_a_wait_stands_and_no_other() -> None:
    """The branch beside it has a limit of its own, which goes on."""

    async def waits() -> str:
        async with TimeLimit(0.05):
            with our_wait():
                await asyncio.sleep(0.3)
        return "in time"

    async def hangs() -> None:
        async with TimeLimit(0.05):
            await asyncio.Event().wait()

    async with TimeLimit(1) as whole:
        first, second = await asyncio.gather(waits(), hangs(), return_exceptions=True)
    assert first == "in time"
    assert isinstance(second, TimeoutError)
    assert not whole.expired


async def test_a_users_own_timeout_is_not_taken_for_ours() -> None:
    limit = TimeLimit(5)

    async def times_out() -> None:
        async with limit, asyncio.timeout(0.01):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await times_out()
    assert not limit.expired


async def test_a_wait_that_outlives_the_block_stops_nothing() -> None:
    go_on = asyncio.Event()

    async def wait() -> None:
        with our_wait():
            await go_on.wait()

    async with TimeLimit(0.05):
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
    go_on.set()
    await task
