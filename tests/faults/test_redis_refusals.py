"""Rows 14, 15, 16 and 18: Redis hangs up, stands still, is full, or takes no writes."""

import asyncio
import signal
from contextlib import suppress

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError

from tests.faults.oracle import judge
from tests.faults.rig import GRACE_S, STOP_S, Rig
from tests.faults.stage import goes_on, under_load


@pytest.mark.slow_fault
async def test_row_14_redis_hangs_up(rig: Rig) -> None:
    """Every connection, every 30 ms, for three seconds."""
    programs = [await rig.api(), await rig.worker()]
    async with under_load(rig, programs):
        for _ in range(100):
            with suppress(RedisConnectionError):  # the rig's own may be among them
                await rig.client.client_kill_filter(_type="normal")
                await rig.client.client_kill_filter(_type="pubsub")
            rig.injected()
            await asyncio.sleep(0.03)
    await judge(rig)


@pytest.mark.slow_fault
async def test_row_14_redis_restarts_twenty_times(rig: Rig) -> None:
    programs = [await rig.api(), await rig.worker()]
    async with under_load(rig, programs):
        for _ in range(20):
            await rig.redis.kill()
            rig.injected()
            await asyncio.sleep(rig.random.uniform(0, 0.5))
            await rig.redis.start()
            await asyncio.sleep(rig.random.uniform(0, 1))
    await judge(rig)


@pytest.mark.slow_fault
async def test_row_15_redis_frozen(rig: Rig) -> None:
    """Half a minute; a worker that is told to stop meanwhile does so in its time."""
    programs = [await rig.api(), await rig.worker()]
    leaving = await rig.worker()
    async with under_load(rig, programs):
        rig.redis.freeze()
        rig.injected()
        try:
            await asyncio.sleep(rig.random.uniform(5, 10))
            leaving.tell(signal.SIGTERM)
            assert await leaving.ended(GRACE_S + STOP_S) == 0
            await asyncio.sleep(15)
        finally:
            rig.redis.thaw()
    await judge(rig)


@pytest.mark.slow_fault
async def test_row_16_redis_full(rig: Rig) -> None:
    programs = [await rig.api(), await rig.worker()]
    async with under_load(rig, programs):
        await rig.client.config_set("maxmemory", 100)
        rig.injected()
        try:
            with pytest.raises(OutOfMemoryError):
                await rig.client.set("more", "than there is room for")
            await goes_on(rig, 200)
        finally:
            await rig.client.config_set("maxmemory", 0)
    await judge(rig)


@pytest.mark.slow_fault
async def test_row_18_redis_becomes_replica(rig: Rig) -> None:
    """Of a master that does not answer: it takes no writes, and to read as a group is one."""
    programs = [await rig.api(), await rig.worker()]
    async with under_load(rig, programs):
        await rig.client.execute_command("REPLICAOF", "127.0.0.1", "1")
        rig.injected()
        try:
            with pytest.raises(ReadOnlyError):
                await rig.client.set("more", "than it may take")
            await goes_on(rig, 200)
        finally:
            await rig.client.execute_command("REPLICAOF", "NO", "ONE")
    await judge(rig)
