"""One caller who asks for as much as it can: another one is answered as before, and who asked too much is told so."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from msgspec import Struct
from msgspec.structs import replace

from service.core.settings import Settings
from service.documents import vectors
from tests.board import serving
from tests.eventually import eventually
from tests.keys import bearer, make_key

SEARCH = {"query": "a"}
EVENT = {"type": "message.labelled", "data": {"text": "a", "label": "b"}}
LISTED = ("events", "dead_letters", "operations")
SOON_S = 1.0


class Two(Struct, frozen=True):
    """Clients of two tenants, of one API."""

    greedy: httpx.AsyncClient
    other: httpx.AsyncClient


@asynccontextmanager
async def two(settings: Settings, *scopes: str) -> AsyncIterator[Two]:
    scopes = scopes or ("read", "ingest", "documents")
    keys = [await make_key(settings, *scopes, tenant=tenant) for tenant in ("acme", "globex")]
    limits = httpx.Limits(max_connections=None)
    async with serving(settings) as url, AsyncExitStack() as stack:
        clients = [httpx.AsyncClient(base_url=url, timeout=30, limits=limits, headers=bearer(key)) for key in keys]
        yield Two(*[await stack.enter_async_context(client) for client in clients])


@asynccontextmanager
async def locked(settings: Settings, *tables: str) -> AsyncIterator[asyncpg.Connection]:
    """Whoever reads the tables waits."""
    connection = await asyncpg.connect(settings.database_url)
    try:
        async with connection.transaction():
            await connection.execute(f"lock table {', '.join(tables)} in access exclusive mode")
            yield connection
    finally:
        await connection.close()


async def waiting(connection: asyncpg.Connection) -> int:
    """How many statements wait for the lock."""
    count: int = await connection.fetchval(
        "select count(*) from pg_locks where not granted and database = (select oid from pg_database"
        " where datname = current_database())"
    )
    return count


def statuses(answers: list[httpx.Response]) -> set[int]:
    return {answer.status_code for answer in answers}


async def answered_soon(http: httpx.AsyncClient, path: str = "/events") -> None:
    async with asyncio.timeout(SOON_S):
        assert (await http.get(path)).status_code == 200


async def searching(
    http: httpx.AsyncClient, lock: asyncpg.Connection, count: int
) -> list[asyncio.Task[httpx.Response]]:
    """That many searches, under way: four of them wait for the lock."""
    searches = [asyncio.create_task(http.post("/collections/help/search", json=SEARCH)) for _ in range(count)]

    async def under_way() -> bool:
        return await waiting(lock) == 4

    await eventually(under_way)
    return searches


async def test_searches_of_one_leave_the_pool_to_others(settings: Settings) -> None:
    """Fifteen at once that take long, as the first of them to be tried did: four run, the others wait for a turn."""
    async with two(settings) as callers:
        async with locked(settings, "documents") as lock:
            searches = await searching(callers.greedy, lock, 15)
            for _ in range(10):
                await answered_soon(callers.other)
                await answered_soon(callers.greedy)
            assert await waiting(lock) == 4
        assert statuses(await asyncio.gather(*searches)) == {200}


@pytest.mark.parametrize("path", ["/events", "/?limit=100", "/dead-letters", "/operations"])
async def test_lists_of_one_leave_a_turn_to_others(settings: Settings, path: str) -> None:
    """Six at once that take long: two run, and what is no list is answered meanwhile."""
    async with two(settings, "admin") as callers:
        async with locked(settings, *LISTED) as lock:
            lists = [asyncio.create_task(callers.greedy.get(path)) for _ in range(6)]

            async def wait(count: int) -> bool:
                return await waiting(lock) == count

            await eventually(lambda: wait(2))
            for _ in range(10):
                await answered_soon(callers.greedy, "/types")
            assert await waiting(lock) == 2
            theirs = asyncio.create_task(callers.other.get(path))
            await eventually(lambda: wait(3))
        assert statuses(await asyncio.gather(*lists, theirs)) == {200}


async def test_a_search_that_gets_no_turn_comes_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "WAIT_S", 0.1)
    async with two(settings) as callers:
        async with locked(settings, "documents") as lock:
            searches = await searching(callers.greedy, lock, 4)
            deleted = {"filter": {"a": {"eq": 1}}}
            for refused in (
                await callers.greedy.post("/collections/help/search", json=SEARCH),
                await callers.greedy.request("DELETE", "/collections/help/documents", json=deleted),
            ):
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
                assert "more of your searches" in refused.json()["detail"]
            theirs = asyncio.create_task(callers.other.post("/collections/help/search", json=SEARCH))

            async def five() -> bool:
                return await waiting(lock) == 5

            await eventually(five)
            counted = (await callers.other.get("/metrics")).text
            assert 'callboard_refused_total{bound="searches",whose="caller"} 2.0' in counted
        assert statuses(await asyncio.gather(*searches, theirs)) == {200}


async def test_a_search_has_a_time_limit(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "SEARCH_TIMEOUT_S", 0.2)
    async with two(settings) as callers, locked(settings, "documents") as lock:
        late = await callers.greedy.post("/collections/help/search", json=SEARCH)
        assert (late.status_code, late.headers["retry-after"]) == (503, "1")
        assert "more than 0.2 s" in late.json()["detail"]

        async def none() -> bool:
            return await waiting(lock) == 0

        await eventually(none)  # it is over in Postgres too


def compared(comparisons: int, values: int) -> dict[str, Any]:
    return {f"f{n}": {"in": list(range(values))} for n in range(comparisons)}


@pytest.mark.parametrize(
    ("which", "count"),
    [
        (compared(100, 400), 40_000),
        (compared(2, 501), 1_002),
        ({"or": [compared(1, 1_000), {"and": [{"a": {"eq": 1}}]}]}, 1_001),
        (compared(1, 1_000), None),
    ],
    ids=["as-tried", "two-lists", "nested", "as-many-as-may-be"],
)
async def test_the_values_of_a_filter_are_counted(
    api: httpx.AsyncClient, which: dict[str, Any], count: int | None
) -> None:
    for method, path in (("POST", "search"), ("DELETE", "documents")):
        body = {"filter": which, **(SEARCH if method == "POST" else {})}
        answer = await api.request(method, f"/collections/help/{path}", json=body)
        assert answer.status_code == (422 if count else 200), answer.text
        if count:
            assert f"at most 1000 values in all, this one {count}" in answer.json()["detail"]
            assert answer.json()["errors"][0]["path"] == "$.filter"


async def test_reads_of_one_leave_connections_to_others(settings: Settings) -> None:
    async with two(settings) as callers:
        async with locked(settings, "dead_letters") as lock:
            reads = [asyncio.create_task(callers.greedy.get(f"/dead-letters/{uuid4()}")) for _ in range(30)]

            async def under_way() -> bool:
                return await waiting(lock) == 6

            await eventually(under_way)  # of ten two are the API's own, two the next one's
            for _ in range(10):
                await answered_soon(callers.other)
            await answered_soon(callers.other, "/readyz")
            assert await waiting(lock) == 6
        assert statuses(await asyncio.gather(*reads)) == {404}


async def test_streams_of_one_leave_some_to_others(settings: Settings) -> None:
    async with two(replace(settings, streams_max=6)) as callers:
        paths = {
            who: f"/events/{(await who.post('/events', json=EVENT)).json()['event_id']}/stream"
            for who in (callers.greedy, callers.other)
        }

        async def opens(stack: AsyncExitStack, http: httpx.AsyncClient) -> int:
            return (await stack.enter_async_context(http.stream("GET", paths[http]))).status_code

        async with AsyncExitStack() as stack:
            assert [await opens(stack, callers.greedy) for _ in range(4)] == [200, 200, 200, 429]
            refused = await callers.greedy.get(paths[callers.greedy])
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
            assert [await opens(stack, callers.other) for _ in range(3)] == [200, 200, 429]

        async def freed() -> bool:
            async with AsyncExitStack() as again:
                return [await opens(again, callers.other) for _ in range(3)] == [200, 200, 200]

        await eventually(freed)
