"""Rows 1 to 3: workers that are killed, in the middle of calls and at the worst moments."""

import asyncio

import pytest

from tests.eventually import eventually
from tests.faults.oracle import judge
from tests.faults.rig import Rig, percentile

TAKEOVER_S = 10.0


async def test_row_01_kill_worker_mid_call(rig: Rig) -> None:
    """The fast one: a single kill under load."""
    await _killed_mid_call(rig, rounds=1, held=15, load=80)


@pytest.mark.slow_fault
async def test_row_01_takeover_is_quick(rig: Rig) -> None:
    """A hundred claims and more lose their worker, some of them twice."""
    await _killed_mid_call(rig, rounds=3, held=45, load=200)
    assert len(rig.takeovers_s) >= 100
    assert percentile(rig.takeovers_s, 0.99) < TAKEOVER_S


async def _killed_mid_call(rig: Rig, rounds: int, held: int, load: int) -> None:
    await rig.api()
    await rig.worker(concurrency=200)
    for _ in range(rounds):
        victim = await rig.worker(concurrency=60)
        rig.sink.latency_s = lambda: 4.0
        sending = asyncio.create_task(rig.load.burst(load, ["probe.ask"], keys=load // 4, senders=30))
        await rig.full(victim, held)
        await asyncio.sleep(rig.random.uniform(0, 1))
        assert await rig.kill(victim)
        rig.sink.latency_s = lambda: 0.1
        await sending
    await judge(rig)
    assert max(rig.takeovers_s) < TAKEOVER_S
