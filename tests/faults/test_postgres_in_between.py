"""Rows 53 and 54: another Postgres than before, and a pooler on the way to it."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.eventually import eventually
from tests.faults.behind import DATABASE
from tests.faults.child import Child
from tests.faults.oracle import judge
from tests.faults.rig import Rig
from tests.faults.stage import goes_on, refused, under_load
from tests.keys import AT_HOME
from tests.pgbouncer import pgbouncer, pgbouncer_in
from tests.second_postgres import second_postgres
from tests.servers import open_folder

REFUSED = (202, 503)
READ_ONLY = "Postgres takes no writes: it is a standby, or read-only"
POOL = 2  # PgBouncer gives twenty connections as it comes: an API takes 5 and a worker 11 beside their pools


@pytest.mark.slow_fault
async def test_row_53_a_standby_takes_over(rig: Rig) -> None:
    """Nobody is told 202 by it before it takes writes; what had its 202 before goes on there."""
    with open_folder() as folder:
        primary = rig.machines.postgres.server
        async with second_postgres(folder / "standby", standby_of=primary) as standby:
            api, worker = await rig.api(doors=True), await rig.worker(doors=True)
            async with under_load(rig, [api, worker], told=REFUSED):
                await rig.postgres.stop()  # in order, so that all it has committed has been sent
                rig.postgres.give_way(standby)
                rig.injected()
                await refused(rig)
                assert await eventually(lambda: _not_ready(api, READ_ONLY))
                assert await eventually(lambda: _no_lease(rig), 20)
                accepted = len(rig.load.taken)
                await refused(rig)
                assert len(rig.load.taken) == accepted
                await rig.sql("select pg_promote()")
                rig.injected()
                await goes_on(rig, 60, 60)
                assert await eventually(lambda: _is_ready(api))
            await judge(rig)


@pytest.mark.slow_fault
async def test_row_54_sessions_of_a_pgbouncer(rig: Rig) -> None:
    """As the package has it; it is killed twice, and everybody comes again."""
    with open_folder() as folder:
        root = await asyncio.to_thread(pgbouncer_in, folder)
        async with pgbouncer(root, rig.machines.postgres.server) as running:
            told: dict[str, Any] = {"database_url": f"{running.address}/{DATABASE}", "pool": POOL}
            programs = [await rig.api(**told), await rig.worker(**told)]
            async with under_load(rig, programs, told=REFUSED):
                for _ in range(2):
                    running.kill()
                    rig.injected()
                    await refused(rig)
                    await running.start()
                    await goes_on(rig, 60, 60)
            await judge(rig)


async def test_row_54_transactions_of_a_pgbouncer_are_refused(rig: Rig) -> None:
    """At the boot of each program, in one sentence; nobody is given a 202 that is worth nothing."""
    with open_folder() as folder:
        root = await asyncio.to_thread(pgbouncer_in, folder)
        async with pgbouncer(root, rig.machines.postgres.server, pool_mode="transaction") as running:
            told: dict[str, Any] = {"database_url": f"{running.address}/{DATABASE}", "pool": POOL}
            for name in ("api", "worker"):
                child = await rig.start(name, **told)
                rig.injected()
                assert await child.ended() == 1
                assert "Traceback" not in child.said
                (line,) = [line for line in child.said.splitlines() if line.startswith("callboard ")]
                assert line.startswith(
                    f"callboard {name}: DATABASE_URL leads to a pooler that gives each transaction another connection."
                )
    await judge(rig)


async def _not_ready(api: Child, detail: str) -> bool:
    async with httpx.AsyncClient(headers=AT_HOME, base_url=api.url, timeout=5) as http:
        response = await http.get("/readyz")
        return response.status_code == 503 and response.json()["detail"] == detail


async def _is_ready(api: Child) -> bool:
    async with httpx.AsyncClient(headers=AT_HOME, base_url=api.url, timeout=5) as http:
        return (await http.get("/readyz")).status_code == 200


async def _no_lease(rig: Rig) -> bool:
    return not await rig.sql("select 1 from workers where lease_until >= clock_timestamp()")
