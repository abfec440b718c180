"""Row 39 where the calls of a run are made at the same time."""

import asyncio

import pytest

from tests.eventually import eventually
from tests.faults.oracle import judge
from tests.faults.rig import Rig
from tests.faults.stage import REST_S


@pytest.mark.slow_fault
async def test_row_39_it_fails_for_both_branches_of_a_run(rig: Rig) -> None:
    """A breaker lets the calls of a run try together: one that is sent away would end the other, again and again."""
    await rig.api()
    await rig.worker()
    failing = True
    rig.sink.fault = lambda _: "529" if failing else ""
    load = asyncio.create_task(rig.load.burst(40, ["probe.both"]))
    opened = "select 1 from attempts where outcome = 'snoozed' and detail->>'message' like '%breaker%' limit 1"
    await eventually(lambda: rig.sql(opened), 60)
    rig.injected()
    failing = False
    await load
    rig.expects_s = REST_S
    await judge(rig)
