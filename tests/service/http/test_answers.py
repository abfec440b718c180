"""Answers end at a number of bytes, and whoever does not read them holds little, and not for long."""

import asyncio
import socket
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx
import pytest
from msgspec import json

from schemas.identity import uuid7
from service.core.settings import Settings
from service.dashboard.look import PRETTY_MAX, pretty
from service.documents.vectors import FOUND_MAX
from service.http import app
from service.http.answers import PIECE
from service.http.app_state import LIST_MAX
from service.http.connections import READ_S, Connection, expire_all
from tests.debian import libraries, unpacked
from tests.eventually import eventually
from tests.keys import AT_HOME, TOKEN, bearer, make_key
from tests.listening import listening_on
from tests.service.http.test_connections import api_of, made

__all__ = ["made"]

EVENT: Final = {"type": "message.labelled", "data": {"text": "a", "label": "b"}}
LARGE: Final = 1_000_000
LIST: Final = "/events?limit=500"


async def keep(settings: Settings, sizes: list[int], tenant: str = "default") -> list[str]:
    """Events with extensions of these sizes, as they were taken before those had a bound; the newest first."""
    ids = [str(uuid7()) for _ in sizes]
    connection = await asyncpg.connect(settings.database_url)
    try:
        await connection.execute(
            "insert into events (event_id, tenant, source, id, type, status, finished_at, data, attributes)"
            " select id::uuid, $3, '/old', id, 'message.labelled', 'cancelled', now(), '{}',"
            " json_build_object('extensions', json_build_object('much', repeat('a', size)))"
            " from unnest($1::text[], $2::integer[]) as e (id, size)",
            ids,
            sizes,
            tenant,
        )
    finally:
        await connection.close()
    return sorted(ids, reverse=True)


async def walked(api: httpx.AsyncClient, path: str) -> list[list[dict[str, Any]]]:
    """The items of each page, by its cursors; no page is larger than it may be."""
    pages: list[list[dict[str, Any]]] = []
    cursor = ""
    while True:
        answer = await api.get(path + cursor)
        body = answer.json()
        assert len(answer.content) < LIST_MAX + 1_000 * len(body["items"]) or len(body["items"]) == 1
        assert body["items"] or body["next"] is None
        pages.append(body["items"])
        if body["next"] is None:
            return pages
        cursor = f"&cursor={body['next']}"


@pytest.mark.parametrize(
    ("sizes", "pages"),
    [
        ([LARGE] * 5, [1, 1, 1, 1, 1]),
        ([10, 3 * LARGE, 10, 10], [2, 1, 1]),  # the newest first
        ([7_000] * 300, [148, 148, 4]),
        ([10] * 20, [20]),
    ],
    ids=["large", "larger-than-a-page", "many", "small"],
)
async def test_a_page_of_events_ends_at_its_bytes(
    api: httpx.AsyncClient, settings: Settings, sizes: list[int], pages: list[int]
) -> None:
    ids = await keep(settings, sizes)
    found = await walked(api, LIST)
    assert [row["event_id"] for page in found for row in page] == ids
    assert [len(page) for page in found] == pages


async def test_a_page_of_dead_letters_ends_at_its_bytes(api: httpx.AsyncClient, settings: Settings) -> None:
    connection = await asyncpg.connect(settings.database_url)
    await connection.execute(
        "insert into dead_letters (dead_id, origin, reason, error, attempts, event)"
        " select gen_random_uuid(), n::text, 'invalid', '{}', 0, repeat('a', 400000 * (1 + (n = 3)::integer * 5))"
        " from generate_series(1, 6) as n"
    )
    await connection.close()
    pages = await walked(api, "/dead-letters?limit=500")
    assert [len(page) for page in pages] == [2, 1, 1, 2]
    assert len({row["dead_id"] for page in pages for row in page}) == 6


async def test_a_timeline_ends_at_its_bytes(api: httpx.AsyncClient, settings: Settings) -> None:
    """Of an event that was replayed all the time the latest is shown; its sums are those of all."""
    (event_id,) = await keep(settings, [10])
    connection = await asyncpg.connect(settings.database_url)
    await connection.execute(
        "insert into attempts (event_id, claim, run, attempt, worker, started_at, finished_at, outcome, detail, steps)"
        " select $1, n, n, 1, $1, now() + n * interval '1 s', now() + n * interval '1 s', 'failed',"
        " json_build_object('message', repeat('a', 2000)), '[]' from generate_series(1, 3000) as n",
        event_id,
    )
    await connection.execute(
        "insert into calls (call_id, event_id, run, claim, step, at, prompt, version, hash, request_hash, provider,"
        " model, tokens_in, tokens_out, cost_usd, priced, ms, outcome, simulated, worker)"
        " select gen_random_uuid(), $1, n, n, 'step', now() + n * interval '1 s', 'prompt', 1, '', '', 'openai',"
        " 'model', 9, 9, 0.01, true, 9, 'ok', false, $1 from generate_series(1, 3000) as n",
        event_id,
    )
    await connection.close()
    answer = await api.get(f"/events/{event_id}")
    event = answer.json()
    assert (event["calls"], event["cost_usd"]) == (3_000, 30)
    assert len(answer.content) < 3 << 20
    whats = [moment["what"] for moment in event["timeline"]]
    assert (whats[0], whats.count("call"), whats.count("retry")) == ("accepted", 2_000, 519)
    assert event["left_out"] == 1_000 + 3_000 - 519
    last = [moment for moment in event["timeline"] if moment["what"] == "call"][-1]
    assert (last["step"], last["attempt"]) == ("step", 1)
    page = await api.get(f"/ui/events/{event_id}")
    assert (page.status_code, len(page.content) < 3 << 20) == (200, True)


async def test_a_search_gives_the_best_up_to_its_bytes(api: httpx.AsyncClient) -> None:
    text = "a" * 900_000
    for n in range(6):
        document = {"id": str(n), "text": text, "vector": [10, n]}
        assert (await api.put("/collections/large/documents", json={"documents": [document]})).status_code == 200
    answer = await api.post("/collections/large/search", json={"vector": [1, 0], "k": 6})
    assert len(answer.content) < FOUND_MAX + 10_000
    assert ([item["id"] for item in answer.json()["items"]], answer.json()["left_out"]) == (["0", "1", "2", "3"], 2)
    few = (await api.post("/collections/large/search", json={"vector": [1, 0], "k": 2})).json()
    assert (len(few["items"]), few["left_out"]) == (2, 0)


async def test_a_page_shows_the_beginning_of_what_is_large(api: httpx.AsyncClient, settings: Settings) -> None:
    """Of events that were taken before their extensions had a bound; a list in the browser has so many rows."""
    first, *_ = await keep(settings, [LARGE, *[10] * 150])
    connection = await asyncpg.connect(settings.database_url)
    large = await connection.fetchval("select event_id from events order by event_id limit 1")
    await connection.close()
    page = await api.get(f"/ui/events/{large}")
    assert (page.status_code, "a" * 1_000 in page.text, len(page.content) < 30_000) == (200, True, True)
    listed = await api.get("/?limit=500")
    assert (listed.text.count("/ui/events/"), first in listed.text, "older" in listed.text) == (100, True, True)


async def test_what_is_shown_of_json_is_bounded() -> None:
    """Sixty deep, each of many numbers on a line of its own: indented it would be a hundred times as long."""
    deep: Any = [0] * 400_000
    for _ in range(60):
        deep = [deep]
    tracemalloc.start()
    try:
        shown = pretty(deep)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(shown) < PRETTY_MAX + 100
    assert peak < 6 * LARGE


@asynccontextmanager
async def unread(
    port: int, headers: dict[str, str] | None = None, requests: int = 30, path: str = LIST
) -> AsyncIterator[socket.socket]:
    """A client that asks many times on one connection, and reads nothing by itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
        lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or AT_HOME).items())
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode()
        await asyncio.get_running_loop().sock_sendall(client, request * requests)
        yield client


def at_home(port: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(headers=AT_HOME, base_url=f"http://127.0.0.1:{port}", timeout=10)


@asynccontextmanager
async def here(settings: Settings) -> AsyncIterator[int]:
    async with listening_on(app.create_app(settings), http=Connection) as url:
        yield int(url.rpartition(":")[2])


async def stuck(connections: list[Connection], count: int) -> bool:
    return sum(connection.flow.write_paused for connection in connections) == count


async def test_who_does_not_read_is_hung_up_on(settings: Settings, made: list[Connection]) -> None:
    await keep(settings, [LARGE] * 2)
    async with here(settings) as port, unread(port) as client:
        await eventually(lambda: stuck(made, 1))
        (connection,) = made
        assert connection.transport.get_write_buffer_size() <= 128 << 10, "the server holds no more than that"
        held = connection.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert held <= 512 << 10, "nor does the kernel, which takes twice as much as it is told"
        now = asyncio.get_running_loop().time()
        expire_all(made, now + READ_S - 1)
        assert not connection.transport.is_closing()
        received = 0
        for _ in range(5):  # one who reads now and then, for longer than READ_S in all
            connection.read_at -= READ_S / 2
            before = connection.read_at
            while connection.read_at == before:
                received += len(await asyncio.get_running_loop().sock_recv(client, 65_536))
            await eventually(lambda: stuck(made, 1))
            expire_all(made, asyncio.get_running_loop().time())
            assert not connection.transport.is_closing()
        assert received > 4 * PIECE
        expire_all(made, asyncio.get_running_loop().time() + READ_S + 1)
        await eventually(lambda: _is_gone(connection))
        async with at_home(port) as http:
            counted = (await http.get("/metrics")).text
        assert 'callboard_refused_total{bound="unread",whose="caller"} 1.0' in counted


async def _is_gone(connection: Connection) -> bool:
    return connection not in connection.server_state.connections


@pytest.mark.parametrize("requests", [1, 2, 30])
async def test_an_answer_ends_when_its_client_has_gone(
    settings: Settings, made: list[Connection], requests: int
) -> None:
    """It is not written on: by uvloop that is an exception. uvicorn tells the last of what was pipelined alone."""
    await keep(settings, [LARGE] * 2)
    async with here(settings) as port:
        async with unread(port, requests=requests):
            await eventually(lambda: stuck(made, 1))
        await eventually(lambda: _is_gone(made[0]))

        async def is_over() -> bool:
            return not made[0].server_state.tasks

        await eventually(is_over)
        assert made[0].server_state.total_requests == 0, "none was answered to its end"


async def test_a_stream_ends_when_its_client_has_gone_with_requests_behind_it(
    settings: Settings, made: list[Connection]
) -> None:
    async with here(settings) as port:
        async with at_home(port) as http:
            event_id = (await http.post("/events", json=EVENT)).json()["event_id"]
        made.clear()
        async with unread(port, requests=5, path=f"/events/{event_id}/stream"):

            async def is_followed() -> bool:
                return bool(made and made[0].is_busy and made[0].pipeline and made[0].cycle is not made[0]._answered)

            await eventually(is_followed)
            (under_way,) = made[0].server_state.tasks
        await asyncio.wait_for(asyncio.shield(under_way), 5)


async def test_answers_that_are_not_read_take_room_by_caller(
    settings: Settings, made: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "ANSWERS_MAX", 4 << 20)
    keys = [await make_key(settings, "read", "ingest", tenant=tenant) for tenant in ("acme", "globex")]
    greedy, other = map(bearer, keys)
    for tenant in ("acme", "globex"):
        await keep(settings, [LARGE] * 2, tenant)
    async with (
        here(settings) as port,
        httpx.AsyncClient(headers=AT_HOME, base_url=f"http://127.0.0.1:{port}", timeout=10) as http,
    ):
        async with AsyncExitStack() as stack:
            for count in (1, 2):
                await stack.enter_async_context(unread(port, greedy))
                await eventually(lambda count=count: stuck(made, count))  # type: ignore[misc]
            refused = await http.get(LIST, headers=greedy)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert "more of your answers" in refused.json()["detail"]
            assert (await http.get("/events?limit=500&type=none", headers=greedy)).status_code == 200, "a small one"
            stored = await http.post("/events/batch", json=[EVENT] * 700, headers=greedy)
            assert stored.status_code == 202, "what was done is told, however large the answer is"
            assert len(stored.content) > PIECE
            assert (await http.get(LIST, headers=other)).status_code == 200

        async def again() -> bool:
            return (await http.get(LIST, headers=greedy)).status_code == 200

        await eventually(again)


async def test_a_stream_with_something_large_ends_early_where_there_is_no_room(
    settings: Settings, made: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, without it: its client comes again, and is told it when others have read theirs."""
    monkeypatch.setattr(app, "ANSWERS_MAX", 4 << 20)
    (event_id,) = await keep(settings, [10])
    connection = await asyncpg.connect(settings.database_url)
    await connection.execute("update events set status = 'succeeded', result = to_json(repeat('a', 1000000))")
    await connection.close()
    path = f"/events/{event_id}/stream"
    async with (
        here(settings) as port,
        httpx.AsyncClient(headers=AT_HOME, base_url=f"http://127.0.0.1:{port}", timeout=10) as http,
    ):
        async with AsyncExitStack() as stack:
            for count in (1, 2):
                await stack.enter_async_context(unread(port, path=path))
                await eventually(lambda count=count: stuck(made, count))  # type: ignore[misc]
            early = await http.get(path)
            assert (early.status_code, "event: end" in early.text) == (200, False)

        async def complete_answer() -> bool:
            return len((await http.get(path)).text.partition("event: end")[2]) > LARGE

        await eventually(complete_answer)


async def test_readers_that_never_read_hold_little(settings: Settings, tmp_path: Path) -> None:
    """Events of a megabyte each, of which a page had as many as were asked for, and clients who never read theirs.

    Then slowhttptest's slow read: connections that advertise windows of some bytes and read five a second.
    """
    await keep(settings, [LARGE] * 6)
    root = unpacked(tmp_path / "debian", "slowhttptest")
    async with api_of(settings, tmp_path) as api, AsyncExitStack() as stack:
        assert len(json.decode(await _body(api.port))["items"]) == 1
        before_mb = api.memory_mb
        for _ in range(15):
            await stack.enter_async_context(unread(api.port, requests=5))
        for _ in range(5):
            assert await api.is_well()
            assert len(await _body(api.port, "/workers")) < PIECE
        assert api.memory_mb - before_mb < 60
        address = f"http://127.0.0.1:{api.port}{LIST}"
        async with at_home(api.port) as http:
            await http.post("/login", data={"key": TOKEN})
            cookie = f"callboard={http.cookies['callboard']}"
        program = (root / "usr/bin/slowhttptest", "-X", "-u", address, "-j", cookie)
        tried = await asyncio.create_subprocess_exec(
            *(*program, "-c", "40", "-r", "40", "-k", "5", "-l", "2"),
            env={"LD_LIBRARY_PATH": libraries(root), "TERM": "dumb", "LANG": "C.UTF-8"},
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(30):
            output, _ = await tried.communicate()
        assert b"YES" in output.rpartition(b"service available:")[2], output.decode()
        assert api.memory_mb - before_mb < 80
    assert '"level":"error"' not in (tmp_path / "api.log").read_text(), "that clients have gone is no failure of ours"


async def _body(port: int, path: str = LIST) -> bytes:
    async with httpx.AsyncClient(headers=AT_HOME, timeout=10) as http:
        return (await http.get(f"http://127.0.0.1:{port}{path}")).content
