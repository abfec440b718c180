"""Row 59: a backlog of large entries is on the stream, and the worker that takes it in has little memory."""

import asyncio
from typing import Final

import pytest
from msgspec import json

from tests.eventually import eventually
from tests.faults.memory import small_memory
from tests.faults.rig import Rig
from tests.servers import NAMES

ENTRIES: Final = 509
SIZE: Final = 516_000
TOO_LARGE: Final = 3  # among them, of 20 MB each
MEMORY: Final = 320 << 20  # a worker at rest has half of it; the backlog is 263 MB as it lies in Redis


@pytest.mark.slow_fault
async def test_row_59_large_entries_and_little_memory(rig: Rig) -> None:
    """Each is stored and ends, or is a dead letter, and the worker is never killed and relays it all."""
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


async def _all_dead(rig: Rig) -> bool:
    rows = await rig.sql("select count(*) as many from dead_letters")
    await asyncio.sleep(0.2)
    return bool(rows[0]["many"] == ENTRIES)
