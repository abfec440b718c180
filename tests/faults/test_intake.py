"""Rows 1 and 59: the worker that takes the stream in is killed, or has little memory for a backlog of large entries."""

import time
from typing import Final

import pytest
from msgspec import json

from tests.eventually import eventually
from tests.faults.memory import small_memory
from tests.faults.rig import Rig
from tests.servers import NAMES

TAKEOVER_S: Final = 10.0
ENTRIES: Final = 509
SIZE: Final = 516_000
TOO_LARGE: Final = 3  # among them, of 20 MB each
MEMORY: Final = 320 << 20  # a worker at rest has half of it; the backlog is 263 MB as it lies in Redis


@pytest.mark.slow_fault
async def test_row_59_large_entries_and_little_memory(rig: Rig) -> None:
    """Each is stored and ends, or is a dead letter; the worker is never killed. What it relays is as large again."""
    rig.injected()
    for n in range(ENTRIES):
        data = {"token": "x" * (SIZE if n % 170 else 20_000_000), "how": "reject"}
        said = {"type": "probe.poison", "id": f"{n}", "source": "/large", "data": data}
        await rig.client.xadd(NAMES.ingest, {"event": json.encode(said)})
    worker = await rig.start("worker", concurrency=10)
    with small_memory(worker.pid, MEMORY):
        await eventually(lambda: _all_dead(rig), 120)
        await eventually(rig.quiet, 60)
        assert worker.running, f"it ended with status {worker.process.returncode}: {worker.said[-2000:]}"
        rows = await rig.sql("select reason, count(*) as many from dead_letters group by reason order by reason")
        assert {row["reason"]: row["many"] for row in rows} == {"rejected": ENTRIES - TOO_LARGE, "too_large": TOO_LARGE}
        assert await rig.client.xlen(NAMES.ingest) == 0
        assert await rig.client.xlen(NAMES.dead) == ENTRIES
        assert len(await rig.sql("select 1 from workers")) == 1, "it never lost its lease"


@pytest.mark.slow_fault
async def test_row_01_kill_the_worker_that_takes_the_stream_in(rig: Rig) -> None:
    """Another takes it in within the time of a takeover, though the dead one had said that it would hold it longer."""
    workers = [await rig.worker(), await rig.worker()]
    await _said(rig, "first")
    await eventually(lambda: _stored(rig, "first"))
    (row,) = await rig.sql("select pid from duties join workers on worker = holder where duty = 'ingest'")
    (victim,) = [worker for worker in workers if worker.pid == row["pid"]]
    await rig.kill(victim)
    begun = time.monotonic()
    await _said(rig, "second")
    await eventually(lambda: _stored(rig, "second"), 30)
    assert time.monotonic() - begun < TAKEOVER_S
    await eventually(rig.quiet, 30)


async def _said(rig: Rig, name: str) -> None:
    said = {"type": "probe.once", "id": name, "source": "/stream", "data": {"token": name}}
    await rig.client.xadd(NAMES.ingest, {"event": json.encode(said)})


async def _stored(rig: Rig, name: str) -> bool:
    return bool(await rig.sql("select 1 from events where source = '/stream' and id = $1", name))


async def _all_dead(rig: Rig) -> bool:
    rows = await rig.sql("select count(*) as many from dead_letters")
    return bool(rows[0]["many"] == ENTRIES)
