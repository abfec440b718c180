"""Rows 21, 22 and 50: entries in foreign hands, notifications without end, operators who press twice."""

import asyncio
from uuid import UUID

import pytest
from redis.exceptions import ResponseError

from service.core.streams import GROUP
from service.core.supervise import end
from tests.eventually import eventually
from tests.faults.child import PATIENCE_S
from tests.faults.oracle import judge
from tests.faults.rig import Rig
from tests.servers import NAMES


@pytest.mark.slow_fault
async def test_row_21_foreign_claims_of_entries(rig: Rig) -> None:
    """An intruder reads entries and takes over what others have read, and never acknowledges."""
    rig.expects_s = 60
    await rig.api()
    for _ in range(2):
        await rig.worker()
    stealing = asyncio.create_task(_steal(rig))
    await rig.load.burst(200, ["probe.once", "probe.ask"], keys=10, every_s=0.05)
    await end([stealing])
    assert rig.faults
    await judge(rig)


async def _steal(rig: Rig) -> None:
    while True:
        for name in (NAMES.work, NAMES.front):
            try:
                await rig.client.xreadgroup(GROUP, "intruder", {name: ">"}, count=rig.random.randint(1, 3))
                pending = await rig.client.xpending_range(name, GROUP, "-", "+", 100)
                ids = [entry["message_id"] for entry in pending]
                if ids:
                    await rig.client.xclaim(name, GROUP, "intruder", 0, ids)
                    rig.injected()
            except ResponseError:  # NOGROUP: no worker has made it yet
                continue
        await asyncio.sleep(0.01)


async def test_row_22_the_same_ring_a_hundred_times(rig: Rig) -> None:
    """Before, while and after it runs; on both streams, from nobody we know."""
    await rig.api()
    for _ in range(2):
        await rig.worker()
    rig.sink.latency_s = lambda: 0.5
    for _ in range(5):
        sent = await rig.load.send("probe.ask", rig.random.choice([None, "key"]))
        for n in range(100):
            await rig.client.xadd(rig.random.choice([NAMES.work, NAMES.front]), {"id": UUID(sent.event_id).bytes})
            if n == 50:
                await asyncio.sleep(rig.random.uniform(0, 1.5))
        rig.extra_rings += 100
        rig.injected(100)
    await rig.client.xadd(NAMES.work, {"id": b"no id"})
    evidence = await judge(rig)
    assert all(len(rows) == 1 for rows in evidence.attempts.values())
    assert len(rig.sink.calls) == 2 * len(rig.load.taken)


@pytest.mark.slow_fault
async def test_row_50_operators_press_twice(rig: Rig) -> None:
    """Many replay the same dead letters, singly and in bulk, while a worker is killed: one more run each."""
    await rig.api()
    await rig.api()
    victim = await rig.worker(concurrency=10)
    await rig.worker()
    sent = [await rig.load.send("probe.poison", how="late") for _ in range(8)]
    await eventually(lambda: _letters(rig, len(sent)), PATIENCE_S)
    single = [rig.ask("POST", f"/events/{each.event_id}/replay") for each in sent for _ in range(4)]
    bulk = [rig.ask("POST", "/dead-letters/replay", {"type": "probe.poison"}) for _ in range(4)]
    pressed = [*single, *bulk]
    rig.random.shuffle(pressed)
    answers = await asyncio.gather(*pressed)
    rig.injected(len(pressed))
    await rig.kill(victim)
    assert {answer.status_code for answer in answers} <= {200, 202, 409}, [answer.text for answer in answers]
    singly = sum(answer.status_code == 202 for answer in answers)
    in_bulk = sum(answer.json()["done"] for answer in answers if answer.status_code == 200)
    assert singly + in_bulk == len(sent)
    evidence = await judge(rig)
    assert {event["run"] for event in evidence.events.values()} == {2}
    assert len(await rig.sql("select 1 from runs where run = 1 and status = 'dead'")) == len(sent)
    assert len(await rig.sql("select 1 from operations where action = 'replay'")) == len(sent)


async def _letters(rig: Rig, count: int) -> bool:
    return len(await rig.sql("select 1 from dead_letters")) == count
