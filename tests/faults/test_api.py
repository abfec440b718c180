"""Rows 5 to 7 and 36: an API that is killed around its commit, and bytes that are no event."""

import asyncio
import time
from typing import Final

import pytest
from msgspec import json

from tests.eventually import eventually
from tests.faults.load import Sent
from tests.faults.oracle import judge
from tests.faults.rig import Rig

JSON: Final = {"content-type": "application/json"}
LINES: Final = {"content-type": "application/x-ndjson"}
RUNG_S: Final = 30.0

POISON: Final = {
    "NUL": rb'{"type":"probe.once","data":{"token":"a\u0000b"}}',
    "raw NUL": b'{"type":"probe.once","data":{"token":"a\x00b"}}',
    "lone surrogate": rb'{"type":"probe.once","data":{"token":"\ud800"}}',
    "no UTF-8": b'{"type":"probe.once","data":{"token":"\xff\xfe"}}',
    "huge exponent": b'{"type":"probe.slow","data":{"token":"t","seconds":1e400000}}',
    "exponent past numeric": b'{"type":"probe.slow","data":{"token":"t","seconds":1e131000}}',
    "NaN": b'{"type":"probe.slow","data":{"token":"t","seconds":NaN}}',
    "deep": b'{"type":"probe.once","data":{"token":' + b"[" * 5000 + b"]" * 5000 + b"}}",
    "deep extension": b'{"type":"probe.once","deep":' + b'{"a":' * 100 + b"1" + b"}" * 100 + b',"data":{"token":"t"}}',
    "NUL in the key": rb'{"type":"probe.once","partitionkey":"\u0000","data":{"token":"t"}}',
    "NUL in the id": rb'{"type":"probe.once","id":"\u0000","data":{"token":"t"}}',
    "cut off": b'{"type":"probe.once","data":{"tok',
    "no object": b"[]",
    "nothing": b"",
}
# Each costs a JSON array nothing but itself; the others leave no array, or are too deep for one.
IN_ARRAY: Final = ("NUL", "lone surrogate", "no UTF-8", "huge exponent", "exponent past numeric", "NUL in the id")


@pytest.mark.slow_fault
async def test_row_05_kill_api_between_commit_and_notification(rig: Rig) -> None:
    """Nobody was told and no worker was notified: the event runs all the same, and its sender finds it."""
    victim = await rig.api(failpoints="accept_committed=kill")
    await rig.worker()
    sending = asyncio.create_task(rig.load.send("probe.once"))
    assert await victim.ended() == -9
    rig.injected()

    async def ran() -> bool:
        return bool(await rig.sql("select 1 from events where status = 'succeeded'"))

    await eventually(ran, RUNG_S)
    await rig.api()
    assert (await sending).duplicate
    await judge(rig)


async def test_row_06_kill_api_before_commit(rig: Rig) -> None:
    """No row; the same id, sent again, is the first."""
    victim = await rig.api(failpoints="accept_begin=kill")
    sending = asyncio.create_task(rig.load.send("probe.once"))
    assert await victim.ended() == -9
    rig.injected()
    assert not await rig.sql("select 1 from events")
    await rig.api()
    assert not (await sending).duplicate
    await rig.worker()
    await judge(rig)


@pytest.mark.slow_fault
async def test_row_07_kill_api_around_the_commit_under_load(rig: Rig) -> None:
    """Two APIs die before and behind their commits, started again each time; ids sent twice are one event each."""
    rig.load.http.timeout = 5
    odds = "accept_begin=kill@0.02,accept_committed=kill@0.03"
    for _ in range(2):
        await rig.keep(lambda: rig.api(failpoints=odds))
    await rig.worker()
    await rig.load.burst(250, ["probe.once", "probe.ask"], keys=10)
    await judge(rig)
    assert rig.faults
    assert any(answer.duplicate for answer in rig.load.taken)


async def test_row_07_kill_api_before_its_answer(rig: Rig) -> None:
    """The first API dies behind the commit; the same id at the second is the same event, with one effect."""
    victim = await rig.api(failpoints="accept_committed=kill")
    sending = [asyncio.create_task(rig.load.send("probe.once", key)) for key in ("one", "one", "two", None)]
    assert await victim.ended() == -9
    rig.injected()
    await rig.api()
    await rig.worker()
    await asyncio.gather(*sending)
    await judge(rig)


async def test_row_36_bytes_that_are_no_event(rig: Rig) -> None:
    """Each in the middle of good ones that share its group commit: 4xx for it, 202 for them."""
    api = await rig.api()
    await rig.worker()
    url = f"{api.url}/events"
    good = asyncio.create_task(rig.load.burst(99, ["probe.once"], keys=5))
    refused = await asyncio.gather(*(rig.load.http.post(url, content=body, headers=JSON) for body in POISON.values()))
    codes = {name: answer.status_code for name, answer in zip(POISON, refused, strict=True)}
    rig.injected(len(codes))
    await good
    assert set(codes.values()) <= {400, 413, 422}, codes
    assert all(sending.codes == [202] for sending in rig.load.log)
    await judge(rig)


async def test_row_36_in_a_batch_of_a_hundred(rig: Rig) -> None:
    """A refusal in its item, 202 for the others; as lines it may even be no JSON."""
    api = await rig.api()
    await rig.worker()
    for headers, names in ((JSON, IN_ARRAY), (LINES, [name for name in POISON if POISON[name]])):
        poison, begun = [POISON[name] for name in names], time.time()
        good = [_sent(f"{len(poison)}-{n}", f"key-{n % 5}", begun + n / 1e5) for n in range(100 - len(poison))]
        items = [json.encode(_said(each)) for each in good]
        items[40:40] = poison
        body = b"\n".join(items) if headers is LINES else b"[" + b",".join(items) + b"]"
        answer = await rig.load.http.post(f"{api.url}/events/batch", content=body, headers=headers)
        told = answer.json()
        rig.injected(len(poison))
        assert (answer.status_code, told["accepted"], told["rejected"]) == (207, len(good), len(poison))
        refused = {item["index"]: item["error"]["status"] for item in told["items"] if "error" in item}
        assert list(refused) == [*range(40, 40 + len(poison))]
        assert set(refused.values()) <= {400, 422}, dict(zip(names, refused.values(), strict=True))
        taken = [item for item in told["items"] if "error" not in item]
        for sent, each in zip(good, taken, strict=True):
            sent.event_id = each["event_id"]
            rig.load.log.append(sent)
    await judge(rig)


def _sent(name: str, key: str, at: float) -> Sent:
    """The array's order is a promise: as if each had been answered before the next one was sent."""
    return Sent(name, "probe.once", name, key, at, [202], answered_at=at)


def _said(sent: Sent) -> dict[str, object]:
    data = {"token": sent.token}
    return {"type": sent.kind, "id": sent.id, "source": "/load", "partitionkey": sent.key, "data": data}
