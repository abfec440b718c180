"""Rows 56 to 58: user code that won't end, text that can't be stored, and our own bugs behind a run."""

import asyncio

import pytest

from tests.faults.oracle import Evidence, judge
from tests.faults.rig import Rig


def _letters(evidence: Evidence) -> dict[str, tuple[str, int]]:
    return {str(row["event_id"]): (row["reason"], row["attempts"]) for row in evidence.letters}


@pytest.mark.slow_fault
async def test_row_56_user_code_that_wont_end(rig: Rig) -> None:
    """Each is dead within its attempts, its worker lives, and of its mailbox and its slots others make use."""
    rig.expects_s = 100
    await rig.api()
    worker = await rig.worker(concurrency=4)
    burst = asyncio.create_task(rig.load.burst(60, ["probe.once", "probe.ask"], keys=5))
    hows = ("exit", "cancelled", "swallow", "swallow")
    sent = [(how, await rig.load.send("probe.poison", f"key-{n}", how=how)) for n, how in enumerate(hows)]
    rig.injected(len(sent))
    await burst
    letters = _letters(await judge(rig))
    for how, each in sent:
        expected = "deadline" if how == "swallow" else "attempts_exhausted"
        assert letters[each.event_id] == (expected, 3), how
    assert worker.running
    assert "swallows its cancellation, in workers/nodes/probe.py:" in worker.said


async def test_row_57_text_of_strangers(rig: Rig) -> None:
    """Half a surrogate and a NUL in an error, a NUL in a document: dead by their own attempts, and nobody else."""
    await rig.api()
    worker = await rig.worker()
    burst = asyncio.create_task(rig.load.burst(60, ["probe.once", "probe.ask"], keys=5))
    sent = [await rig.load.send("probe.poison", "key-1", how=how) for how in ("half", "document", "half", "document")]
    rig.injected(len(sent))
    await burst
    letters = _letters(await judge(rig))
    assert [letters[each.event_id] for each in sent] == [("attempts_exhausted", 3)] * len(sent)
    assert worker.running


@pytest.mark.slow_fault
async def test_row_58_claims_that_come_back_unsettled(rig: Rig) -> None:
    """A bug behind the runs of one type: dead after five of them, within two minutes, with the bug's name."""
    rig.expects_s = 120
    await rig.api()
    worker = await rig.worker(failpoints="run_ended:probe.poison=raise")
    sent = [await rig.load.send("probe.poison", f"key-{n}") for n in range(3)]
    await rig.load.burst(60, ["probe.once", "probe.ask"], keys=5, every_s=0.5)
    evidence = await judge(rig)
    rig.injected(5 * len(sent))
    assert {_letters(evidence)[each.event_id][0] for each in sent} == {"crash_loop"}
    for each in sent:
        rows = evidence.attempts[each.event_id]
        assert [row["outcome"] for row in rows] == ["handed_back"] * 5
        assert (rows[-1]["finished_at"] - rows[0]["started_at"]).total_seconds() < 120
        assert "Failpoint" in evidence.events[each.event_id]["error"]
    assert worker.running
