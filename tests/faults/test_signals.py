"""Rows 8 and 9: programs that are asked to end, in every order and at every moment."""

import asyncio
import re
import signal
from pathlib import Path
from typing import Final

import pytest

from tests.faults.child import Child
from tests.faults.oracle import judge
from tests.faults.rig import STOP_S, Rig

GRACE_S: Final = 2
AGAIN_S: Final = 2.0
# Before its own handlers stand, a program ends by the signal itself, or by what the interpreter makes of it.
IN_ORDER: Final = (0, -signal.SIGINT, -signal.SIGTERM)


@pytest.mark.slow_fault
async def test_row_08_rolling_restart_under_load(rig: Rig) -> None:
    """Each program in turn gets SIGTERM and a successor; long runs are handed back, uncharged."""
    rig.expects_s = 60
    apis = [await rig.api(grace_s=GRACE_S) for _ in range(2)]
    workers = [await rig.worker(grace_s=GRACE_S, concurrency=50) for _ in range(3)]
    sending = asyncio.create_task(
        rig.load.flow(["probe.once", "probe.ask", "probe.slow"], keys=10, senders=10, every_s=0.8)
    )
    turns: list[Child] = [*apis, *workers]
    rig.random.shuffle(turns)
    for turn in turns:
        successor = await (rig.api(grace_s=GRACE_S) if turn.url else rig.worker(grace_s=GRACE_S, concurrency=50))
        for _ in range(6):
            await rig.load.send("probe.slow", seconds=6)
        assert await _stopped(rig, turn, signal.SIGTERM) == 0, turn.said
        assert successor.running
    rig.load.enough()
    await sending
    evidence = await judge(rig)
    assert {code for each in rig.load.log for code in each.codes} <= {202, 503, 0}
    ends = [row for rows in evidence.attempts.values() for row in rows]
    assert "handed_back" in {row["outcome"] for row in ends}
    lost = [dict(row) for row in ends if row["outcome"] == "lost"]
    assert not lost, f"an orderly stop left {lost} behind"


@pytest.mark.slow_fault
async def test_row_09_sigterm_twice(rig: Rig) -> None:
    """The second one changes nothing: exit 0, and what was in hand is handed back."""
    api, worker = await rig.api(grace_s=GRACE_S), await rig.worker(grace_s=GRACE_S)
    for _ in range(5):
        await rig.load.send("probe.slow", seconds=6)
    await rig.full(worker, 5)
    for program in (worker, api):
        program.tell(signal.SIGTERM)
        await asyncio.sleep(rig.random.uniform(0, 1))
        assert await _stopped(rig, program, signal.SIGTERM) == 0, program.said
        assert "Traceback" not in program.said
    await rig.worker()
    evidence = await judge(rig)
    assert [rows[0]["outcome"] for rows in evidence.attempts.values()] == ["handed_back"] * 5


@pytest.mark.slow_fault
async def test_row_09_signal_while_starting(rig: Rig) -> None:
    """At any moment of the start, to either program: it ends, and says nothing of a crash."""
    for number in (signal.SIGINT, signal.SIGTERM) * 4:
        for start in ("api", "worker"):
            child = await rig.start(start)
            await asyncio.sleep(rig.random.uniform(0, 3))
            status = await _stopped(rig, child, number, again_s=None if _caught(child) else AGAIN_S)
            ours = str(rig.machines.tree) in child.said
            assert status in IN_ORDER or not ours, f"{child.name}: {status} after {number.name}: {child.said}"
            crashed = "Traceback" in child.said and not child.said.rstrip().endswith("KeyboardInterrupt")
            assert not crashed, child.said
    await rig.api()
    await rig.worker()
    await rig.load.burst(10, ["probe.once"])
    await judge(rig)


async def _stopped(rig: Rig, child: Child, number: signal.Signals, again_s: float | None = None) -> int:
    child.tell(number)
    rig.injected()
    if again_s is not None:
        await asyncio.sleep(again_s)
        child.tell(number)
    return await child.ended(GRACE_S + STOP_S)


def _caught(child: Child) -> bool:
    """Whether its own handlers stand: nothing else catches SIGTERM.

    Before, a SIGINT is a KeyboardInterrupt that the starting interpreter may swallow: once in 745 starts with one
    in the first 120 ms. Then a person presses again.
    """
    caught = re.search(r"^SigCgt:\s+(\w+)", Path(f"/proc/{child.pid}/status").read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)
