"""Row 52: tokens that clients follow, from workers that are killed while they come."""

import asyncio
import time
from typing import Final

import httpx
import pytest
from msgspec.structs import replace

from tests.eventually import eventually
from tests.faults.oracle import judge
from tests.faults.rig import Rig
from tests.faults.usercode import CLAUDE, FILES
from tests.keys import AT_HOME
from tests.sse import Client

EVENTS: Final = 5
SLOW_S: Final = 0.15  # so that none has said all while another has yet to begin
QUICK_S: Final = 0.02
TAKEOVER_S: Final = 10.0


@pytest.mark.slow_fault
@pytest.mark.parametrize(
    ("files", "free"), [(FILES, True), (CLAUDE, False)], ids=["openai, another is free", "anthropic, none lives"]
)
async def test_row_52_kill_worker_mid_stream(rig: Rig, files: dict[str, str], free: bool) -> None:
    """Half of the clients come again all the time, to one API or the other.

    A takeover counts from the kill; where no other worker lives then, from the moment at which one is ready: what it
    takes to start a program is its supervisor's.
    """
    rig.nice = -10
    tree = rig.newer(files)
    apis = [await rig.api(), await rig.api()]
    victim = await rig.worker(concurrency=20, tree=tree)
    rig.sink.token_s = SLOW_S
    clients = [Client((await rig.load.send("probe.speak")).event_id) for _ in range(EVENTS)]
    following = [asyncio.create_task(_follow(rig, each, n)) for n, each in enumerate(clients)]
    await eventually(lambda: asyncio.sleep(0, all(_hears(each, "answer") for each in clients)), 60)
    if free:
        await rig.worker(concurrency=20, tree=tree)
    held = await rig.kill(victim)
    assert len(held) == EVENTS, "a worker that starts behind the others' back holds none of them"
    rig.sink.token_s = QUICK_S
    if not free:
        await rig.worker(concurrency=20, tree=tree)
        ready_at = time.time()
        rig.held[:] = [replace(each, struck_at=ready_at) for each in rig.held]
    async with asyncio.timeout(60):
        await asyncio.gather(*following)
    await judge(rig)
    assert len(rig.takeovers_s) == EVENTS
    assert max(rig.takeovers_s) < TAKEOVER_S
    assert all(api.running for api in apis)
    for client in clients:
        rows = await rig.sql("select step, reply from calls where event_id = $1::uuid and memory", client.event_id)
        assert {step: text for (step, _), text in client.texts.items()} == {row["step"]: row["reply"] for row in rows}
        assert {message["step"] for message in client.of("restart")} == {"answer"}, "the call that is made anew"
        calls = [call.step for call in rig.sink.calls if call.event_id == client.event_id]
        assert sorted(calls) == ["answer", "answer", "speak"], "what was answered is not paid for again"
        numbers = [int(message.id) for message in client.heard]
        assert numbers == sorted(set(numbers)), "nothing is told twice"


def _hears(client: Client, step: str) -> bool:
    return len([token for token in client.of("token") if token["step"] == step]) > 2


async def _follow(rig: Rig, client: Client, n: int) -> None:
    while not client.over:
        async with httpx.AsyncClient(headers=AT_HOME, base_url=rig.random.choice(rig.apis).url, timeout=30) as http:
            await client.follow(http, most=5 if n % 2 else None)
