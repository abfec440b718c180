"""Row 34: the clock of a worker is off, from its start on or from one moment to the next."""

from pathlib import Path
from typing import Final

import pytest

from tests.faketime import WrongClock
from tests.faults.oracle import judge
from tests.faults.rig import Rig
from tests.faults.stage import goes_on, under_load

HOUR_S: Final = 3600


@pytest.mark.slow_fault
@pytest.mark.parametrize("off_s", [HOUR_S, -HOUR_S], ids=["ahead", "behind"])
async def test_row_34_the_clock_of_a_worker_is_off_and_steps(rig: Rig, tmp_path: Path, off_s: int) -> None:
    """Its neighbour's is right. Nothing is lost or taken over; what backs off comes again in seconds."""
    rig.expects_s = 15  # a wait of an hour, or of none, would not be at rest by then
    clock = WrongClock(tmp_path, off_s)
    programs = [await rig.api(), await rig.worker(concurrency=20)]
    programs.append(await rig.worker(concurrency=20, environ=clock.environ))
    async with under_load(rig, programs, told=(202, 503)):
        rig.injected()
        await goes_on(rig, 60)
        clock.set(-off_s)
        rig.injected()
        await goes_on(rig, 60)
        clock.set(0)
        rig.injected()
    evidence = await judge(rig)
    outcomes = {row["outcome"] for rows in evidence.attempts.values() for row in rows}
    assert "lost" not in outcomes, "no lease ran out"
    shifted = await rig.sql("select 1 from calls where at not between now() - interval '30 min' and now()")
    assert not shifted, "the ledger has the time of Postgres"
