"""The usual stage of an outage: programs that must outlive it, a load that spans it, what its senders may be told."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from tests.eventually import eventually
from tests.faults.child import PATIENCE_S, Child
from tests.faults.rig import Rig

KINDS: Final = ("probe.ask",) * 7 + ("probe.once",) * 4 + ("probe.poison",)
BEFORE: Final = 40
SENDERS: Final = 20
KEYS: Final = 10
REST_S: Final = 60.0  # snoozes double
ANSWER_S: Final = 15.0  # longer than the API waits for Postgres before its 503


@asynccontextmanager
async def under_load(
    rig: Rig, programs: Sequence[Child], least: int = 240, rate: float = 25.0, told: Sequence[int] = (202,)
) -> AsyncIterator[None]:
    """Events of all kinds, half of them keyed, about `rate` a second, from before the block to after it.

    At the end each has its 202, nobody was ever told anything that is not in `told` (0: the connection broke), and
    every program runs that ran.
    """
    rig.load.http.timeout = ANSWER_S
    rig.expects_s = max(rig.expects_s, REST_S)
    rig.sink.latency_s = lambda: rig.random.uniform(0.02, 0.06)
    pause_s = (SENDERS + KEYS) / rate
    sending = asyncio.create_task(rig.load.flow(KINDS, KEYS, SENDERS, pause_s))
    try:
        await rig.load.accepted(BEFORE)
        yield
        await rig.load.accepted(least)
        rig.load.enough()
        await sending
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    answers = {code for each in rig.load.log for code in each.codes}
    assert answers <= set(told), sorted(answers)
    ended = [program.name for program in programs if not program.running]
    assert not ended, f"{ended} did not outlive it"


async def goes_on(rig: Rig, count: int, timeout_s: float = PATIENCE_S) -> None:
    """Until so many more have their 202."""
    await rig.load.accepted(len(rig.load.taken) + count, timeout_s)


def refusals(rig: Rig) -> int:
    """How many 503s there were."""
    return sum(sending.codes.count(503) for sending in rig.load.log)


async def refused(rig: Rig, timeout_s: float = PATIENCE_S) -> None:
    """Until somebody is told 503: the outage is longer than the API waits."""
    before = refusals(rig)

    async def fact() -> bool:
        return refusals(rig) > before

    await eventually(fact, timeout_s)
