"""Row 55: another database takes the Redis over while everything runs on it."""

import asyncpg
from msgspec.structs import replace

from service.core.migrate import migrate
from service.core.redis_owner import adopt
from service.core.settings import Settings
from tests.eventually import eventually
from tests.faults.child import PATIENCE_S
from tests.faults.oracle import judge
from tests.faults.rig import Rig
from tests.faults.stage import goes_on, under_load
from tests.servers import NAMES

STRANGER = "stranger"


async def test_row_55_redis_gets_another_owner(rig: Rig) -> None:
    """Events go on being accepted; nothing of the stranger's is read and nothing is written beside it."""
    ours = Settings(database_url=rig.database_url, redis_url=f"redis://127.0.0.1:{rig.machines.redis_port}/0")
    theirs = replace(ours, database_url=await _stranger(rig))
    await migrate(theirs)
    programs = [await rig.api(), await rig.worker()]
    async with under_load(rig, programs, least=180):
        before, after = await adopt(theirs)
        rig.injected()
        assert before != after
        await eventually(lambda: _disconnected(rig), PATIENCE_S)
        last = await _last_id(rig)
        entry = await rig.client.xadd(NAMES.ingest, {"event": b"of the stranger"})
        late = await rig.worker(wait=False)
        assert await late.ended() == 1, "a second one does not start beside another owner's mark"
        await goes_on(rig, 50)
        assert [each for each, _ in await rig.client.xrange(NAMES.ingest)] == [entry]
        assert await _last_id(rig) == last
        assert await rig.client.get(NAMES.owner) == after.encode()
        await rig.client.delete(NAMES.ingest)
        await adopt(ours)
    await judge(rig)


async def _stranger(rig: Rig) -> str:
    """Another database on the same Postgres."""
    connection = await asyncpg.connect(rig.postgres.server.url, timeout=10)
    try:
        await connection.execute(f"drop database if exists {STRANGER} with (force)")
        await connection.execute(f"create database {STRANGER}")
    finally:
        await connection.close()
    head, _, query = rig.database_url.partition("?")
    return f"{head.rpartition('/')[0]}/{STRANGER}?{query}"


async def _disconnected(rig: Rig) -> bool:
    (row,) = await rig.sql("select state, reason from workers where state not in ('dead', 'stopped')")
    degraded = (await rig.ask("GET", "/readyz")).json()["degraded"]
    return (row["state"], row["reason"], [each["reason"] for each in degraded]) == (
        "disconnected",
        "foreign",
        ["foreign"],
    )


async def _last_id(rig: Rig) -> bytes:
    found: bytes = (await rig.client.xinfo_stream(NAMES.work))["last-generated-id"]
    return found
