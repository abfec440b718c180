"""What Postgres and Redis hold while programs are hurt: asked straight, past every proxy."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.faults.child import Child
from tests.faults.machines import Machines

STREAMS: Final = ("callboard:work", "callboard:front")
DATABASE: Final = "rig"


class Behind:
    def __init__(self, machines: Machines) -> None:
        self.machines: Final = machines
        self.client: Final = Redis.from_url(f"redis://127.0.0.1:{machines.redis_port}/0", socket_timeout=2)
        self.length_max = 0
        self._alone: Final = asyncio.Lock()
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    @property
    def database_url(self) -> str:
        head, _, query = self.machines.postgres.server.url.partition("?")
        return f"{head.rpartition('/')[0]}/{DATABASE}?{query}"

    async def sql(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        """On one connection of the test's own: a new one for each poll would take what the programs need."""
        async with self._alone:
            return list(await (await self._session()).fetch(statement, *arguments, timeout=30))

    async def script(self, statements: str) -> None:
        async with self._alone:
            await (await self._session()).execute(statements)

    async def _session(self) -> "asyncpg.Connection[asyncpg.Record]":
        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(self.database_url, timeout=10)
        return self._connection

    async def close(self) -> None:
        await self.client.aclose()
        if self._connection is not None:
            self._connection.terminate()

    async def quiet(self, still_open: Iterable[UUID] = ()) -> bool:
        """Whether nothing is on its way but `still_open`, and nothing pends in Redis."""
        left = await self.sql("select 1 from work where event_id <> all ($1::uuid[]) limit 1", list(still_open))
        unrelayed = await self.sql("select 1 from dead_letters where not relayed limit 1")
        return not left and not unrelayed and await self.pending() == 0

    async def pending(self) -> int:
        """Entries read and not acknowledged, and entries not read, over both streams."""
        found = 0
        for name in STREAMS:
            found += int(await self.client.xlen(name))
        return found

    async def claims(self, child: Child) -> list[asyncpg.Record]:
        return await self.sql(
            "select event_id, claim from work join workers using (worker) where pid = $1 and status = 'running'",
            child.pid,
        )

    async def watch(self) -> None:
        """The longest the streams have been (I5)."""
        while True:
            with suppress(RedisError, OSError, TimeoutError):
                self.length_max = max(self.length_max, await self.pending())
            await asyncio.sleep(0.1)
