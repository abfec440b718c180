"""A running Callboard for a test: the real API over HTTP, real workers, real servers."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import asyncpg
import httpx
from msgspec.structs import replace
from redis.asyncio import Redis

from service.core.roles import as_owner
from service.core.settings import Settings
from service.http.app import create_app
from tests.answers import hold
from tests.eventually import eventually
from tests.keys import AT_HOME
from tests.listening import listening_on
from workers.bootstrap import program
from workers.engine.supervisor import Parts, Program, open_worker

ENDED: Final = ("succeeded", "dead", "cancelled")
TICKET: Final = {"ticket_id": "T-1", "subject": "Charged twice", "body": "You charged my card twice this month."}


class Board:
    """`http` speaks to the API; `redis` and `sql()` look behind it."""

    def __init__(self, settings: Settings, http: httpx.AsyncClient, redis: Redis, workers: list[Parts]) -> None:
        self.settings: Final = settings
        self.http: Final = http
        self.redis: Final = redis
        self.workers: Final = workers

    async def post(self, kind: str, data: Mapping[str, Any], **attributes: Any) -> httpx.Response:
        return await self.http.post("/events", json={"type": kind, "data": data, **attributes})

    async def send(self, kind: str, data: Mapping[str, Any], **attributes: Any) -> str:
        """Accepted: its event_id."""
        response = await self.post(kind, data, **attributes)
        assert response.status_code == 202, response.text
        return str(response.json()["event_id"])

    async def show(self, event_id: str) -> dict[str, Any]:
        response = await self.http.get(f"/events/{event_id}")
        assert response.status_code == 200, response.text
        shown: dict[str, Any] = response.json()
        return shown

    async def ended(self, event_id: str, timeout_s: float = 15.0) -> dict[str, Any]:
        """The event once it has ended."""

        async def fact() -> dict[str, Any] | None:
            shown = await self.show(event_id)
            return shown if shown["status"] in ENDED else None

        result = await eventually(fact, timeout_s)
        assert result is not None
        return result

    async def sql(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(as_owner(self.settings).database_url)
        try:
            return list(await connection.fetch(statement, *arguments))
        finally:
            await connection.close()


@asynccontextmanager
async def board_on(settings: Settings, whole: Program | None = None, workers: int = 1) -> AsyncIterator[Board]:
    """An API and `workers` workers in this process; `whole` stands in for the user code of the project."""
    whole = replace(whole or program(settings), settings=settings)
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(Redis.from_url(settings.redis_url))
        base_url = await stack.enter_async_context(serving(settings, whole))
        http = await stack.enter_async_context(
            httpx.AsyncClient(
                headers=AT_HOME, base_url=base_url, timeout=30, verify=False, event_hooks={"response": [hold]}
            )
        )
        hands = [await stack.enter_async_context(open_worker(whole)) for _ in range(workers)]
        board = Board(settings, http, redis, hands)
        await _ready(settings, workers)
        yield board


READY: Final = """
    select (select count(*) from workers where state not in ('dead', 'stopped')) >= $1
        and ($1 = 0 or exists (select from pipelines))
"""


async def _ready(settings: Settings, workers: int) -> None:
    """By one connection: one for each look would cost more than the board."""
    connection = await asyncpg.connect(settings.database_url)
    try:
        await eventually(lambda: connection.fetchval(READY, workers))
    finally:
        await connection.close()


@asynccontextmanager
async def serving(settings: Settings, whole: Program | None = None) -> AsyncIterator[str]:
    """The API on a free loopback port, in this loop."""
    async with listening_on(create_app(settings, whole.catalog if whole else None)) as url:
        yield url
