"""One tenant means no good, another one works: `make hostile-test`, which wants to make a cgroup.

`HOSTILE_S` says for how long (30 s; each attack alone a third of it).
"""

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import asyncpg
import httpx
import pytest
from msgspec import json

from service.core.settings import Settings
from tests.attacks import ATTACKS
from tests.faults.memory import joining, killed, peak_mb, small_group
from tests.keys import bearer, make_key
from tests.processes import ROOT
from tests.service.http.test_connections import Api, api_of

MEMORY: Final = 256 << 20
DURATION_S: Final = float(os.environ.get("HOSTILE_S") or 30)
ALONE_S: Final = 4.0
EACH_S: Final = 0.02
FACTOR: Final = 5
P99_MS: Final = 100.0
ELSEWHERE: Final = "127.0.0.2"
EVENT: Final = {"type": "message.labelled", "data": {"text": "a", "label": "b"}}
LETTERS: Final = (
    "insert into dead_letters (dead_id, origin, tenant, type, reason, error, attempts, event) select gen_random_uuid(),"
    " 'n' || n, 'hostile', 't', 'rejected', '{}', 1, repeat('x', 500000) from generate_series(1, 200) n"
)


async def filled(api: Api, settings: Settings, headers: dict[str, str]) -> None:
    """What makes the hostile tenant's answers large."""
    much = {f"ext{n}": "x" * 240 for n in range(31)}
    events = [{**EVENT, **much, "source": "/much", "id": f"{n}", "dueat": "2099-01-01T00:00:00Z"} for n in range(500)]
    documents = [{"id": f"{n}", "text": f"refund {n}", "metadata": {"field1": f"value {n}"}} for n in range(300)]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{api.port}", timeout=30, headers=headers) as http:
        for n in range(0, 500, 100):
            assert (await http.post("/events/batch", json=events[n : n + 100])).status_code == 202
        put = await http.put("/collections/mine/documents", json={"documents": documents})
        assert put.status_code == 200, put.text
    connection = await asyncpg.connect(settings.database_url)
    await connection.execute(LETTERS)
    await connection.close()


@asynccontextmanager
async def attacked(api: Api, key: str, duration_s: float, names: list[str]) -> AsyncIterator["subprocess.Popen[str]"]:
    command = ("nice", "-n", "19", sys.executable, "-m", "tests.attacks", str(api.port), key, str(duration_s), *names)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def worked(http: httpx.AsyncClient, key: str, duration_s: float) -> tuple[list[float], Counter[str]]:
    """How long each request took, ms, and how often each status was the answer."""
    loop, times, heard = asyncio.get_running_loop(), list[float](), Counter[str]()
    until, event_id, n = loop.time() + duration_s, "", 0
    while loop.time() < until:
        began, n = loop.time(), n + 1
        try:
            answer = await answer_of(http, key, n, event_id)
        except httpx.TransportError as error:
            heard[type(error).__name__] += 1
        else:
            heard[str(answer.status_code)] += 1
            event_id = answer.json()["event_id"] if answer.status_code == 202 else event_id
        times.append((loop.time() - began) * 1_000)
        await asyncio.sleep(EACH_S)
    return times, heard


async def answer_of(http: httpx.AsyncClient, key: str, n: int, event_id: str) -> httpx.Response:
    """One request after the other of those that a program makes all day, a sign-in among a hundred."""
    match n % 4:
        case 1:
            return await http.post("/events", json=EVENT)
        case 2:
            return await http.get(f"/events/{event_id}")
        case 3:
            return await http.get("/events?limit=10")
    return await http.get("/types") if n % 100 else await http.post("/login", data={"key": key})


def p99(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)]


def cpu_s(api: Api) -> float:
    fields = Path(f"/proc/{api.program.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.hostile
@pytest.mark.parametrize("name", [*ATTACKS, "all"])
async def test_nobody_is_shut_out_by_a_neighbour(settings: Settings, tmp_path: Path, name: str) -> None:
    names, duration_s = ([*ATTACKS], DURATION_S) if name == "all" else ([name], DURATION_S / 3)
    hostile = await make_key(settings, "admin", tenant="hostile")
    mine = await make_key(settings, "ingest", "read", tenant="mine")
    with small_group(MEMORY) as group:
        async with api_of(settings, tmp_path, *joining(group)) as api:
            await filled(api, settings, bearer(hostile))
            where = httpx.AsyncHTTPTransport(local_address=ELSEWHERE)
            url = f"http://127.0.0.1:{api.port}"
            async with httpx.AsyncClient(base_url=url, transport=where, timeout=20, headers=bearer(mine)) as http:
                alone_ms = p99((await worked(http, mine, ALONE_S))[0])
                before_s = cpu_s(api)
                async with attacked(api, hostile, duration_s + 2, names) as attackers:
                    times, heard = await worked(http, mine, duration_s)
                    answers, _ = await asyncio.to_thread(attackers.communicate)
            message = f"{name}: p99 {alone_ms:.0f} → {p99(times):.0f} ms of {len(times)}, {dict(heard)}; "
            message += f"{cpu_s(api) - before_s:.1f} s of {duration_s:.0f} s at work; "
            message += f"{peak_mb(api.program.process.pid):.0f} MB, killed {killed(group)}; attackers: {answers}"
            print(message)
            assert heard.keys() <= {"200", "202", "303"}, message
            assert api.program.process.poll() is None, message
            assert killed(group) == 0, message
            failed = [line for line in (tmp_path / "api.log").read_text().splitlines() if '"level":"error"' in line]
            assert not failed, f"{len(failed)} lines as this one: {failed[0]}"
            assert json.decode(answers), message
            assert p99(times) <= max(FACTOR * alone_ms, P99_MS), message
