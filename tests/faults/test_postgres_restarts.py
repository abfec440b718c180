"""Rows 23, 24 and 26: Postgres is ended, crashes, or hangs up on everybody."""

import asyncio
import time
from uuid import UUID

import asyncpg
import pytest

from tests.faults.child import Child
from tests.faults.oracle import judge
from tests.faults.rig import Rig
from tests.faults.stage import goes_on, refused, under_load

REFUSED = (202, 503)
CONNECTS_MAX = (
    40  # a second, of an API and a worker together: a dozen connections, each tried again with growing pauses
)


@pytest.mark.slow_fault
async def test_row_23_postgres_fast_restart(rig: Rig) -> None:
    """Away for longer than the API waits; nobody storms it meanwhile."""
    api, worker = await rig.api(doors=True), await rig.worker(doors=True)
    async with under_load(rig, [api, worker], told=REFUSED):
        for _ in range(2):
            before, since = _connects(api, worker), time.monotonic()
            await rig.postgres.stop()
            rig.injected()
            await refused(rig)
            rate = (_connects(api, worker) - before) / (time.monotonic() - since)
            assert rate < CONNECTS_MAX
            await rig.postgres.start()
            await goes_on(rig, 60)
    await judge(rig)


def _connects(*children: Child) -> int:
    return sum(child.postgres.accepted for child in children)


async def test_row_24_postgres_crash(rig: Rig) -> None:
    """The postmaster and all its children at once; what had its 202 is there after the recovery."""
    programs = [await rig.api(), await rig.worker()]
    async with under_load(rig, programs, told=REFUSED, least=180):
        taken = [UUID(answer.event_id) for answer in rig.load.taken]
        await rig.postgres.kill()
        rig.injected()
        await rig.postgres.start()
        rows = await rig.sql("select event_id from events where event_id = any ($1::uuid[])", taken)
        assert len(rows) == len(taken)
        await goes_on(rig, 60)
    await judge(rig)


@pytest.mark.slow_fault
async def test_row_26_postgres_hangs_up(rig: Rig) -> None:
    """On one of our connections every 50 ms, for six seconds."""
    programs = [await rig.api(), await rig.worker()]
    async with under_load(rig, programs, told=REFUSED):
        connection = await asyncpg.connect(rig.database_url, timeout=10)
        try:
            over_at = time.monotonic() + 6
            while time.monotonic() < over_at:
                rows = await connection.fetch(
                    "select pid from pg_stat_activity where application_name like 'callboard %' order by pid"
                )
                if rows:
                    await connection.execute("select pg_terminate_backend($1)", rig.random.choice(rows)["pid"])
                    rig.injected()
                await asyncio.sleep(0.05)
        finally:
            await connection.close(timeout=5)
    await judge(rig)
