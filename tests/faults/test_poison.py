"""Rows 35, 48 and 49: events that can't end well, a consumer with a bug, and two releases side by side."""

import asyncio
from uuid import UUID

import pytest

from tests.eventually import eventually
from tests.faults.child import PATIENCE_S
from tests.faults.oracle import judge
from tests.faults.rig import Rig
from tests.faults.usercode import NEWER


async def test_row_35_handlers_that_raise(rig: Rig) -> None:
    """Dead after their own attempts, and no one else is charged."""
    await rig.api()
    await rig.worker()
    burst = asyncio.create_task(rig.load.burst(60, ["probe.once", "probe.ask"], keys=5))
    sent = {how: await rig.load.send("probe.poison", "key-1", how=how) for how in ("raise", "memory", "reject")}
    rig.injected(len(sent))
    await burst
    evidence = await judge(rig)
    letters = {str(row["event_id"]): (row["reason"], row["attempts"]) for row in evidence.letters}
    assert letters[sent["raise"].event_id] == letters[sent["memory"].event_id] == ("attempts_exhausted", 3)
    assert letters[sent["reject"].event_id] == ("rejected", 1)


@pytest.mark.slow_fault
async def test_row_35_event_that_ends_its_worker(rig: Rig) -> None:
    """Every worker that runs it is gone: it ends dead as a crash loop, and its neighbours pay nothing."""
    rig.expects_s = 200
    await rig.api()
    for _ in range(2):
        await rig.keep(lambda: rig.worker(concurrency=20))
    sending = asyncio.create_task(rig.load.flow(["probe.once", "probe.ask"], keys=5, senders=3, every_s=1.0))
    crash = await rig.load.send("probe.crash", "key-1")
    await eventually(lambda: _letters(rig), 180)
    rig.load.enough()
    await sending
    evidence = await judge(rig)
    assert [(str(row["event_id"]), row["reason"]) for row in evidence.letters] == [(crash.event_id, "crash_loop")]


async def _letters(rig: Rig) -> bool:
    return bool(await rig.sql("select 1 from dead_letters"))


@pytest.mark.slow_fault
async def test_row_48_reader_with_a_bug(rig: Rig) -> None:
    """Every third turn of it raises: it starts again each time, and the work gets done."""
    await rig.api()
    worker = await rig.worker(failpoints="reader_turn=raise@0.3")
    await rig.load.burst(60, ["probe.once", "probe.ask"], keys=5, every_s=0.1)
    await judge(rig)
    rig.injected(worker.said.count("consumer ended"))
    assert rig.faults
    assert worker.running


@pytest.mark.slow_fault
async def test_row_48_reader_that_never_reads(rig: Rig) -> None:
    """Its worker says that it is disconnected, where operators look; the other one does the work."""
    await rig.api()
    silent = await rig.worker(failpoints="reader_turn=raise")
    rig.injected()
    await rig.worker()
    await rig.load.burst(60, ["probe.once", "probe.ask"], keys=5)

    async def told() -> bool:
        items = (await rig.ask("GET", "/workers")).json()["items"]
        return [item["state"] for item in items if item["pid"] == silent.pid] == ["disconnected"]

    await eventually(told, PATIENCE_S)
    await judge(rig)


@pytest.mark.slow_fault
async def test_row_49_two_releases_side_by_side(rig: Rig) -> None:
    """What only the newer one knows waits for it, alive and uncharged: a type, and a field of a type that both have.

    Both are of this tree: a release whose migration needs a stop never runs beside the one before."""
    newer = rig.newer(NEWER)
    await rig.api(tree=newer)
    await rig.worker()
    rig.injected()
    unknown = [await rig.load.send("probe.new", key) for key in (None, "key")]
    wider = [await rig.load.send("probe.once", note="more than the old one knows") for _ in range(3)]
    behind = await rig.load.send("probe.once", "key")

    async def waits() -> bool:
        rows = await rig.sql("select event_id, status, cause, attempts from work")
        there = {str(row["event_id"]): row for row in rows}
        for each in unknown:
            row = there[each.event_id]
            assert (row["status"], row["attempts"]) == ("scheduled", 0)
            assert "probe.new" in row["cause"]
        return set(there) >= {each.event_id for each in (*unknown, behind)}

    await eventually(waits, PATIENCE_S)
    assert not await rig.sql("select 1 from dead_letters"), "a newer release's event was taken for a bad one"
    await rig.worker(tree=newer)
    rig.expects_s = 60
    await judge(rig)
    assert {each.event_id for each in wider} <= {
        str(row["event_id"]) for row in await rig.sql("select event_id from events where status = 'succeeded'")
    }
    assert UUID(behind.event_id)
