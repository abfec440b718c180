"""Rows 31 to 33: between our programs and the servers pieces vanish, replies get lost, everything is late."""

import asyncio
import signal
from typing import Final

import pytest

from tests.faults.oracle import judge
from tests.faults.proxy import Mode
from tests.faults.rig import GRACE_S, STOP_S, Rig
from tests.faults.stage import goes_on, refused, under_load

REFUSED: Final = (202, 503)
WAYS: Final = [(program, server) for program in ("api", "worker") for server in ("postgres", "redis")]


@pytest.mark.slow_fault
@pytest.mark.parametrize(("program", "server"), WAYS)
async def test_row_31_network_blackhole(rig: Rig, program: str, server: str) -> None:
    """Longer than any lease or deadline; what was on its way arrives when it is over."""
    api, worker, other = await rig.api(doors=True), await rig.worker(doors=True), await rig.worker()
    door = (api if program == "api" else worker).doors[server]
    dumb = (program, server) == ("api", "postgres")
    async with under_load(rig, [api, worker, other], told=REFUSED if dumb else (202,)):
        door.turn("blackhole")
        rig.injected()
        await asyncio.sleep(rig.random.uniform(10, 15))
        if dumb:
            await refused(rig)
        door.turn("pass")
        await goes_on(rig, 60)
    await judge(rig)


@pytest.mark.slow_fault
async def test_row_31_network_blackhole_worker_told_to_stop(rig: Rig) -> None:
    """It reaches nobody any more, has events in hand, and ends in its time all the same."""
    api, worker, other = await rig.api(), await rig.worker(doors=True), await rig.worker()
    async with under_load(rig, [api, other]):
        rig.sink.latency_s = lambda: 3.0
        await rig.full(worker, 5)
        for door in worker.doors.values():
            door.turn("blackhole")
        rig.injected()
        await asyncio.sleep(rig.random.uniform(0, 8))
        worker.tell(signal.SIGTERM)
        assert await worker.ended(GRACE_S + STOP_S) == 0
        rig.sink.latency_s = lambda: 0.05
    await judge(rig)


@pytest.mark.slow_fault
async def test_row_31_network_blackhole_api_told_to_stop(rig: Rig) -> None:
    """With requests in hand that can't be stored: their senders turn to another API."""
    api, other, worker = await rig.api(doors=True), await rig.api(), await rig.worker()
    async with under_load(rig, [other, worker], told=(202, 503, 0)):
        for door in api.doors.values():
            door.turn("blackhole")
        rig.injected()
        await asyncio.sleep(rig.random.uniform(0, 8))
        api.tell(signal.SIGTERM)
        assert await api.ended(GRACE_S + STOP_S) == 0
    await judge(rig)


async def test_row_32_network_replies_lost(rig: Rig) -> None:
    """Events are committed and nobody learns it: the same ids come again and find them."""
    api, worker = await rig.api(doors=True), await rig.worker()
    async with under_load(rig, [api, worker], told=REFUSED, least=180):
        for _ in range(3):
            api.postgres.turn("deaf")
            rig.injected()
            await asyncio.sleep(rig.random.uniform(0.2, 1))
            api.postgres.turn("pass")
            await goes_on(rig, 40)
    await judge(rig)


@pytest.mark.slow_fault
@pytest.mark.parametrize(("program", "server"), WAYS)
async def test_row_32_network_half_open(rig: Rig, program: str, server: str) -> None:
    """Deaf: what is asked is done, and the reply is lost. Half open: the server has hung up, and nobody knows."""
    api, worker, other = await rig.api(doors=True), await rig.worker(doors=True), await rig.worker()
    door = (api if program == "api" else worker).doors[server]
    dumb = (program, server) == ("api", "postgres")
    modes: list[Mode] = ["deaf", "deaf", "half_open"]
    rig.random.shuffle(modes)
    async with under_load(rig, [api, worker, other], told=REFUSED if dumb else (202,)):
        for mode in modes:
            door.turn(mode)
            rig.injected()
            await asyncio.sleep(rig.random.uniform(1, 7))
            door.turn("pass")
            await goes_on(rig, 20)
    await judge(rig)


@pytest.mark.slow_fault
async def test_row_33_network_slow(rig: Rig) -> None:
    """200 ± 100 ms each way, everywhere: slow, but nobody is taken for dead."""
    rig.expects_s = 90
    api, worker, other = await rig.api(doors=True), await rig.worker(doors=True), await rig.worker(doors=True)
    programs = [api, worker, other]
    async with under_load(rig, programs, rate=20, told=REFUSED):
        for door in [door for program in programs for door in program.doors.values()]:
            door.turn("delay", lambda: rig.random.uniform(0.1, 0.3))
        rig.injected()
        await goes_on(rig, 150, 60)
        await asyncio.sleep(8)
    await judge(rig)
    assert not await rig.sql("select * from attempts where outcome = 'lost'")
    assert not await rig.sql("select * from workers where state = 'dead'")
