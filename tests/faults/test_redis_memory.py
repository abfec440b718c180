"""Rows 10 to 13 and 20: Redis forgets some of what it knew, or all."""

import shutil

import pytest

from service.core.streams import GROUP
from tests.eventually import eventually
from tests.faults.child import PATIENCE_S
from tests.faults.oracle import judge
from tests.faults.rig import Rig
from tests.faults.stage import goes_on, under_load
from tests.servers import NAMES


async def test_row_10_redis_flushall(rig: Rig) -> None:
    """Again and again, in the middle of the work; the senders notice nothing."""
    rig.forgets = True
    programs = [await rig.api(), await rig.worker()]
    async with under_load(rig, programs, least=180):
        for _ in range(3):
            await rig.client.flushall()
            rig.injected()
            await goes_on(rig, 50)
    await judge(rig)


@pytest.mark.slow_fault
@pytest.mark.parametrize("what", ["stream", "group"])
async def test_row_11_redis_stream_or_group_deleted(rig: Rig, what: str) -> None:
    """Less than all: the epoch mark stays, so that nothing says that Redis forgot."""
    programs = [await rig.api(), await rig.worker(), await rig.worker()]
    async with under_load(rig, programs):
        for name in (NAMES.work, NAMES.front, NAMES.work):
            if what == "stream":
                await rig.client.delete(name)
            else:
                await rig.client.xgroup_destroy(name, GROUP)
            rig.injected()
            await goes_on(rig, 50)
    await judge(rig)


async def test_row_12_redis_restarts_empty(rig: Rig) -> None:
    """Away for a while, then back with nothing: the 202s go on all the time."""
    rig.forgets = True
    programs = [await rig.api(), await rig.worker()]
    async with under_load(rig, programs, least=180):
        data = rig.redis.server.folder / "data"
        await rig.redis.kill()
        rig.injected()
        for path in data.glob("append*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        await goes_on(rig, 100)
        await rig.redis.start()
        assert not await rig.client.exists("callboard:dead")
    await judge(rig)


@pytest.mark.slow_fault
async def test_row_13_redis_restarts_with_its_file(rig: Rig) -> None:
    """What comes back is a second old at most: entries that were done with notify once more."""
    programs = [await rig.api(), await rig.worker()]
    async with under_load(rig, programs):
        for _ in range(3):
            await rig.redis.kill()
            rig.injected()
            await goes_on(rig, 30)
            await rig.redis.start()
            await goes_on(rig, 30)
    await judge(rig)


@pytest.mark.slow_fault
async def test_row_20_redis_trimmed_under_pending(rig: Rig) -> None:
    """Entries go while they wait, and while a worker that has died holds them as pending; no trace of them stays."""
    programs = [await rig.api(), await rig.worker()]
    async with under_load(rig, programs):
        for _ in range(3):
            victim = await rig.worker(wait=False, failpoints="claim_committed=kill")
            await victim.ended()
            assert await _pending(rig)
            for name in (NAMES.work, NAMES.front):
                await rig.client.xtrim(name, maxlen=0, approximate=False)
            rig.injected()
            await goes_on(rig, 20)
    await judge(rig)
    await eventually(lambda: _none_pending(rig), PATIENCE_S)


async def _pending(rig: Rig) -> int:
    return sum([int((await rig.client.xpending(name, GROUP))["pending"]) for name in (NAMES.work, NAMES.front)])


async def _none_pending(rig: Rig) -> bool:
    return await _pending(rig) == 0
