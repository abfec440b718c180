"""Rows 4 and 37: workers that stand still, from outside by SIGSTOP and from inside by a node that blocks the loop."""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import pytest

from tests.eventually import eventually
from tests.faults.child import PATIENCE_S, Child
from tests.faults.oracle import judge
from tests.faults.rig import Held, Rig, percentile

TAKEOVER_S: Final = 10.0
LEASE_S: Final = 6.0
BLOCKED_STATUS: Final = 70


@pytest.mark.slow_fault
async def test_row_04_freeze_worker(rig: Rig) -> None:
    """A hundred takeovers in three rounds."""
    rig.expects_s, rig.nice = 60, -10
    await rig.api()
    await rig.worker(concurrency=200)
    victim = await rig.worker(concurrency=60)
    for n in range(3):
        rig.sink.latency_s = lambda: rig.random.uniform(8, 16)
        sending = asyncio.create_task(rig.load.flow(["probe.ask"], keys=10, senders=10))
        await eventually(lambda: _asking(rig, victim, 45), PATIENCE_S)
        await asyncio.sleep(rig.random.uniform(0, 1))
        claims = await rig.freeze(victim)
        rig.sink.latency_s = lambda: 0.1
        rig.load.enough()
        await asyncio.sleep(2 * LEASE_S)
        rig.thaw(victim)
        await _powerless(rig, victim, claims, time.time(), lives=n + 2)
        await sending
    await judge(rig)
    assert len(rig.takeovers_s) >= 100
    assert percentile(rig.takeovers_s, 0.99) < TAKEOVER_S


async def _asking(rig: Rig, victim: Child, count: int) -> bool:
    """Whether so many of its claims wait for a model: a claim alone has nothing yet that could go wrong."""
    claims = {(str(row["event_id"]), row["claim"]) for row in await rig.claims(victim)}
    return len(claims & {(call.event_id, call.claim) for call in rig.sink.calls}) >= count


async def _powerless(rig: Rig, victim: Child, claims: Sequence[Held], thawed_at: float, lives: int) -> None:
    """The frozen worker is back: under a new id, and what it held is not its any more."""
    mine = {(claim.event_id, claim.claim) for claim in claims}

    async def under_new_id() -> bool:
        rows = await rig.sql("select state from workers where pid = $1 order by started_at", victim.pid)
        return len(rows) == lives and rows[-1]["state"] == "ready"

    await eventually(under_new_id, PATIENCE_S)

    async def all_in_the_ledger() -> bool:
        rows = await rig.sql("select event_id, claim, step, at from calls")
        begun = {(str(row["event_id"]), row["claim"], row["step"]): row["at"].timestamp() for row in rows}
        made = {
            (call.event_id, call.claim, call.step) for call in rig.sink.calls if (call.event_id, call.claim) in mine
        }
        assert made, "nothing was in hand"
        missing = made - begun.keys()
        assert not missing, f"{len(missing)} of {len(made)} calls it paid for are not in the ledger"
        late = [each for each in made if begun[each] > thawed_at]
        assert not late, f"calls begun under a lost lease: {late}"
        return True

    await eventually(all_in_the_ledger, PATIENCE_S)
    told = [
        effect
        for effect in rig.sink.effects
        if (effect.key.partition("/")[0], effect.claim) in mine and effect.at > thawed_at
    ]
    assert not told, f"effects under a lost lease: {told}"
    rows = await rig.sql("select event_id, claim, outcome from attempts")
    outcomes = {(str(row["event_id"]), row["claim"]): row["outcome"] for row in rows}
    assert {outcomes.get(each) for each in mine} <= {"lost", "succeeded"}


@pytest.mark.slow_fault
async def test_row_37_node_blocks_the_loop(rig: Rig) -> None:
    """20 s: the heartbeat goes on, nobody takes anything over, and what ran beside it ends late, uncharged."""
    rig.expects_s = 60
    await rig.api()
    blocked = await rig.worker(concurrency=20)
    for _ in range(10):
        await rig.load.send("probe.slow", seconds=2)
    await rig.full(blocked, 10)
    await rig.load.send("probe.block", seconds=20)
    rig.injected()
    await rig.worker()
    await rig.load.burst(40, ["probe.once", "probe.ask"], keys=5)
    evidence = await judge(rig)
    outcomes = {row["outcome"] for rows in evidence.attempts.values() for row in rows}
    assert "lost" not in outcomes, outcomes


@pytest.mark.slow_fault
async def test_row_37_node_blocks_the_loop_for_good(rig: Rig) -> None:
    """After 30 s the worker says where it hangs and ends; what it held goes on elsewhere."""
    rig.expects_s = 60
    await rig.api()
    blocked = await rig.worker(concurrency=20)
    for _ in range(5):
        await rig.load.send("probe.slow", seconds=2)
    await rig.full(blocked, 5)
    hang = await rig.load.send("probe.block", seconds=300)
    rig.injected()
    assert await blocked.ended(60) == BLOCKED_STATUS
    assert "time.sleep" in blocked.said or "block" in blocked.said
    assert (await rig.ask("POST", f"/events/{hang.event_id}/cancel")).status_code == 202
    await rig.worker()
    await judge(rig, ended={"probe.block": "cancelled"})
