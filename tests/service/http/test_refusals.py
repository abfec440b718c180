"""What a bound refuses is counted; what is refused for want of room says when to come again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx
import pytest

from service.core import group_commit
from service.core.errors import OverLimit, TooMany, Unavailable
from service.core.settings import Settings
from service.http import app_state, connections
from service.http.app import create_app
from service.http.connections import HEAD_MAX, Connection
from service.intake.intake import Intake
from tests.eventually import eventually
from tests.keys import AT_HOME, AUTHORIZED
from tests.listening import listening_on

EVENT = {"type": "message.labelled", "data": {"text": "a", "label": "b"}}
HALF = (
    b"POST /events HTTP/1.1\r\nHost: localhost\r\n"
    + AUTHORIZED
    + b"Content-Type: application/json\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
)


@asynccontextmanager
async def api_of(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        listening_on(create_app(settings), http=Connection) as url,
        httpx.AsyncClient(base_url=url, headers=AT_HOME, timeout=30) as http,
    ):
        yield http


async def counted(http: httpx.AsyncClient) -> list[str]:
    shown = (await http.get("/metrics")).text.splitlines()
    return sorted(line.partition("{")[2] for line in shown if line.startswith("callboard_refused_total{"))


async def raw(http: httpx.AsyncClient, sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", http.base_url.port or 0)
    writer.write(sent)
    return reader, writer


async def half(http: httpx.AsyncClient) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request whose body is awaited: the API has asked for it."""
    reader, writer = await raw(http, HALF)
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    return reader, writer


async def test_what_is_too_large_or_too_slow_is_counted(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_state, "BODY_TIMEOUT_S", 0.2)
    async with api_of(settings) as http:
        large = b'{"type":"' + b"a" * settings.body_max + b'"}'
        media = {"Content-Type": "application/json"}
        assert (await http.post("/events", content=large, headers=media)).status_code == 413
        batch = await http.post("/events/batch", json=[EVENT] * (settings.batch_max + 1))
        assert batch.status_code == 413
        assert (await http.post("/login", data={"key": "a" * 5_000})).status_code == 413
        slow, writer = await half(http)
        assert b" 408 " in await slow.readline()
        head, other = await raw(http, b"GET / HTTP/1.1\r\nA: " + b"a" * HEAD_MAX + b"\r\n\r\n")
        assert b" 431 " in await head.readline()
        assert await counted(http) == [
            'bound="heads",whose="caller"} 1.0',
            'bound="sizes",whose="caller"} 3.0',
            'bound="unsent",whose="caller"} 1.0',
        ]
        writer.close()
        other.close()


async def test_connections_are_counted_and_where_all_are_busy_the_next_one_comes_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS_MAX", 2)
    async with api_of(settings) as http:
        assert (await http.get("/healthz")).status_code == 200  # this one idles
        held = [await half(http) for _ in range(2)]
        refused, writer = await raw(http, b"")
        head = (await refused.read()).partition(b"\r\n\r\n")[0]
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in head
        writer.close()
        for _, each in held:
            each.write(b"{}")
        assert [(await reader.readline()).split()[1] for reader, _ in held] == [b"422", b"422"]
        assert await counted(http) == [
            'bound="connections",whose="all"} 1.0',
            # what idled, and of the two that were answered the one in whose place this was asked
            'bound="connections",whose="caller"} 2.0',
        ]
        for _, each in held:
            each.close()


async def test_a_full_queue_of_writes_is_counted(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "WAITING_MAX", 1)
    sql = await asyncpg.connect(settings.database_url)
    async with api_of(settings) as http, sql.transaction():
        await sql.execute("lock table events in access exclusive mode")
        tasks = [asyncio.create_task(http.post("/events", json=EVENT)) for _ in range(8)]

        async def some() -> list[httpx.Response]:
            return [task.result() for task in tasks if task.done()]

        for each in await eventually(some):
            assert (each.status_code, each.headers["retry-after"]) == (503, "1")
        assert [line.partition("}")[0] for line in await counted(http)] == ['bound="store",whose="all"']
        for task in tasks:
            task.cancel()
    await sql.close()


@pytest.mark.parametrize(
    ("error", "status"), [(TooMany("as much as one may have", 3), 429), (Unavailable("a", 3), 503)]
)
async def test_a_page_that_is_refused_says_when_to_come_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    async def full(*_: Any) -> Any:
        raise error

    monkeypatch.setattr("service.dashboard.pages.find", full)
    async with api_of(settings) as http:
        page = await http.get("/")
        assert (page.status_code, page.headers["retry-after"]) == (status, "3")
        assert page.headers["content-type"] == "text/html; charset=utf-8"


async def test_a_batch_of_which_some_could_not_be_stored_now_says_when_to_come_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_all = Intake.take_all

    async def some(self: Intake, batch: Any) -> Any:
        refusals = [OverLimit("rate", "too fast", 3), Unavailable("not written within 10 s", 7)]
        return [*await take_all(self, batch[:-2]), *refusals]

    monkeypatch.setattr(Intake, "take_all", some)
    async with api_of(settings) as http:
        answer = await http.post("/events/batch", json=[EVENT] * 3)
    assert (answer.status_code, answer.json()["accepted"], answer.headers["retry-after"]) == (207, 1, "7")
    assert [item["error"]["status"] for item in answer.json()["items"][1:]] == [429, 503]
