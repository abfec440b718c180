"""Row 1, its price: what a killed worker had under way is charged at its worst case, and paid for again once."""

import asyncio
import signal
from collections import Counter

import pytest

from tests.eventually import eventually
from tests.faults.oracle import judge
from tests.faults.rig import Rig
from tests.faults.usercode import CLAUDE, FILES

EVENTS = 12


@pytest.mark.parametrize(
    "files", [FILES, pytest.param(CLAUDE, marks=pytest.mark.slow_fault)], ids=["openai", "anthropic"]
)
async def test_row_01_what_a_kill_mid_call_costs(rig: Rig, files: dict[str, str]) -> None:
    tree = rig.newer(files)
    await rig.api()
    victim = await rig.worker(concurrency=EVENTS, tree=tree)
    rig.sink.latency_s = lambda: 3600.0
    await asyncio.gather(*(rig.load.send("probe.ask") for _ in range(EVENTS)))
    await eventually(lambda: _called(rig, EVENTS))
    opened = await rig.sql("select call_id, cost_usd from calls where outcome = 'open'")
    assert len(opened) == EVENTS
    victim.tell(signal.SIGKILL)
    await victim.ended()
    rig.injected()
    rig.sink.latency_s = lambda: 0.02
    await rig.worker(tree=tree)
    await judge(rig)

    rows = await rig.sql("select call_id, event_id, step, outcome, cause, cost_usd from calls")
    unknown = {row["call_id"]: row["cost_usd"] for row in rows if row["outcome"] == "unknown"}
    assert unknown == {row["call_id"]: row["cost_usd"] for row in opened}, "each at the most it may have cost"
    assert min(unknown.values()) > 0
    paid = Counter((row["event_id"], row["step"], row["outcome"]) for row in rows)
    assert set(paid.values()) == {1}, "one that was cut off is paid again once, nothing else"
    assert len(rows) == 3 * EVENTS
    (day,) = await rig.sql(
        "select drawn_usd - (select sum(drawn_usd - used_usd) from allowances) as charged from budgets"
    )
    assert day["charged"] == pytest.approx(sum(row["cost_usd"] for row in rows)), "and the day's budget says the same"


async def _called(rig: Rig, times: int) -> bool:
    return len(rig.sink.calls) >= times
