"""Rows 1 to 3: workers that are killed, in the middle of calls and at the worst moments."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Final

import pytest

from tests.eventually import eventually
from tests.faults.child import PATIENCE_S
from tests.faults.oracle import judge
from tests.faults.rig import Held, Rig, percentile

TAKEOVER_S: Final = 10.0


async def test_row_01_kill_worker_mid_call(rig: Rig) -> None:
    """One kill under load."""
    await _killed_mid_call(rig, rounds=1, held=15)


@pytest.mark.slow_fault
async def test_row_01_a_hundred_takeovers(rig: Rig) -> None:
    await _killed_mid_call(rig, rounds=3, held=45)
    assert len(rig.takeovers_s) >= 100


async def _killed_mid_call(rig: Rig, rounds: int, held: int) -> None:
    """Each round's events go on before the next victim comes.

    An event whose workers were lost one after the other waits longer each time, by design, since it may be what ends
    them (`rescue` in sql/queries/sweeper.sql). What is measured here is the takeover from one worker.
    """
    rig.expects_s, rig.nice = 60, -10
    await rig.api()
    await rig.worker(concurrency=200)
    for _ in range(rounds):
        victim = await rig.worker(concurrency=60)
        rig.sink.latency_s = lambda: 12.0
        sending = asyncio.create_task(rig.load.flow(["probe.ask"], keys=10, senders=10))
        await rig.full(victim, held)
        await asyncio.sleep(rig.random.uniform(0, 1))
        claims = await rig.kill(victim)
        assert claims
        rig.sink.latency_s = lambda: 0.1
        rig.load.enough()
        await sending
        await eventually(partial(_taken_over, rig, claims), PATIENCE_S)
    await judge(rig)
    assert percentile(rig.takeovers_s, 0.99) < TAKEOVER_S


async def _taken_over(rig: Rig, claims: Sequence[Held]) -> bool:
    """Whether another worker has claimed each of them since."""
    ids, numbers = [held.event_id for held in claims], [held.claim for held in claims]
    return not await rig.sql(
        """
        select 1 from unnest($1::text[], $2::bigint[]) held (event_id, claim)
        where not exists (
            select 1 from audit a where a.event_id::text = held.event_id and a.what = 'claimed' and a.claim > held.claim
        )
        """,
        ids,
        numbers,
    )


@pytest.mark.slow_fault
@pytest.mark.parametrize("failpoint", ["claim_committed", "settle_begin", "settle_committed"])
async def test_row_02_kill_worker_around_its_commits(rig: Rig, failpoint: str) -> None:
    """Behind the claim and before its acknowledgement; before the settle; behind it, before workers hear of more."""
    await rig.api()
    await rig.worker(concurrency=20)
    victim = await rig.worker(concurrency=5, failpoints=f"{failpoint}=kill")
    sending = asyncio.create_task(rig.load.flow(["probe.once", "probe.ask"], keys=5, senders=5, every_s=0.2))
    assert await victim.ended() == -9
    rig.injected()
    rig.load.enough()
    await sending
    await judge(rig)


@pytest.mark.slow_fault
async def test_row_02_again_and_again(rig: Rig) -> None:
    """Workers that die at random behind claim and settle, started again each time, under load."""
    rig.expects_s = 60
    await rig.api()
    await rig.worker(concurrency=20)
    odds = "claim_committed=kill@0.02,settle_begin=kill@0.02,settle_committed=kill@0.02"
    for _ in range(2):
        await rig.keep(lambda: rig.worker(concurrency=20, failpoints=odds))
    sending = asyncio.create_task(rig.load.flow(["probe.once", "probe.ask"], keys=8, senders=8, every_s=0.3))
    await eventually(lambda: _at_least(rig, 6), 180)
    rig.load.enough()
    await sending
    await judge(rig)


async def _at_least(rig: Rig, faults: int) -> bool:
    return rig.faults >= faults


@pytest.mark.slow_fault
async def test_row_03_kill_worker_between_dead_letter_and_stream(rig: Rig) -> None:
    """The letter is numbered and committed, the entry is not written: another worker writes it, once."""
    await rig.api()
    victim = await rig.worker(failpoints="letter_numbered=kill")
    for _ in range(5):
        await rig.load.send("probe.poison", how="reject")
    assert await victim.ended() == -9
    rig.injected()
    await rig.worker()
    await judge(rig)
    entries = await rig.client.xrange("callboard:dead")
    assert len(entries) == 5
