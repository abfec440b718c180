"""Read → claim → acknowledge: never more than there are free slots; own pending entries first after any error."""

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.core import streams
from service.core.failpoints import hit
from service.core.metrics import Meters
from service.core.redis_errors import RedisState
from service.core.servers import POSTGRES_ERRORS, Connection, connect
from service.core.settings import Settings
from service.core.streams import Entry
from workers.engine.claim import SQL, Claimed, claimed
from workers.engine.executor import Executor
from workers.engine.lease import Lease

BLOCK_MS: Final = 4000
FOREIGN_IDLE_MS: Final = 10_000
FOREIGN_EVERY_S: Final = 10.0
CLAIM_TIMEOUT_S: Final = 10.0
CLAIM_TRIES: Final = 3
STOP_S: Final = 1.5
SILENT_S: Final = 12.0
STANDING_BY_S: Final = 0.05

log = logging.getLogger("callboard.consumer")


class Consumer:
    """Takes notified events from the streams into the executor."""

    def __init__(
        self, settings: Settings, redis: Redis, lease: Lease, executor: Executor, meters: Meters | None = None
    ) -> None:
        self._meters: Final = meters or Meters()
        self._names: Final = streams.names_of(settings)
        self._streams: Final = (self._names.front, self._names.work)  # in the order they are read
        self._settings: Final = settings
        self._redis: Final = redis
        self._lease: Final = lease
        self._executor: Final = executor
        self._redis_state: Final = RedisState()
        self._foreign_at = 0.0
        self._heard_at = time.monotonic()

    @property
    def disconnected(self) -> bool:
        """Whether Redis is another's, or nothing could be read for SILENT_S although there was room: alive, but not
        working."""
        silent = self._executor.free > 0 and time.monotonic() - self._heard_at > SILENT_S
        return silent or self.reason == "foreign"

    @property
    def reason(self) -> str | None:
        """What was wrong with Redis at the last try to read from it."""
        return self._redis_state.trouble.reason if self._redis_state.trouble else None

    async def run(self) -> None:
        """Read until cancelled. After an error the supervisor starts it again, and it takes its own pending first."""
        connection = await connect(self._settings, "consumer")
        try:
            await streams.mend(self._redis, self._names)
            for name in self._streams:
                await streams.ensure_group(self._redis, name, streams.GROUP)
            await self._recover(connection)
            while True:
                hit(self._settings, "reader_turn")
                await self._turn(connection)
        except RedisError as error:
            self._redis_state.failed(error)
            raise
        finally:
            with suppress(*POSTGRES_ERRORS):
                connection.terminate()

    async def _turn(self, connection: Connection) -> None:
        free = await self._executor.free_slots()
        if not self._lease.held:
            await asyncio.sleep(STANDING_BY_S)
            return
        if free > 1:
            await self._read(connection, self._streams, free // 2, BLOCK_MS)
        elif not await self._read(connection, self._streams[:1], 1, None):
            await self._read(connection, self._streams[1:], 1, BLOCK_MS)
        self._heard_at = time.monotonic()
        self._redis_state.worked()
        if time.monotonic() - self._foreign_at > FOREIGN_EVERY_S:
            await self._take_foreign(connection)

    async def _read(self, connection: Connection, names: Sequence[str], count: int, block_ms: int | None) -> bool:
        by_stream = await streams.read(self._redis, names, streams.GROUP, self._consumer_name, count, block_ms=block_ms)
        for name, entries in by_stream:
            await self._take(connection, name, entries)
        return bool(by_stream)

    @property
    def _consumer_name(self) -> str:
        return str(self._lease.worker)

    async def _recover(self, connection: Connection) -> None:
        """What was read but not claimed when the last turn failed."""
        for name in self._streams:
            while entries := await self._pending(name):
                await self._take(connection, name, entries)

    async def _pending(self, name: str) -> list[Entry]:
        free = await self._executor.free_slots()
        by_stream = await streams.read(self._redis, [name], streams.GROUP, self._consumer_name, free, after="0")
        return [entry for _, entries in by_stream for entry in entries]

    async def _take_foreign(self, connection: Connection) -> None:
        """What a consumer that is gone had read but not claimed."""
        self._foreign_at = time.monotonic()
        for name in self._streams:
            free = self._executor.free
            if free > 0:
                entries = await streams.take_over(
                    self._redis, name, streams.GROUP, self._consumer_name, FOREIGN_IDLE_MS, free
                )
                await self._take(connection, name, entries)

    async def _take(self, connection: Connection, name: str, entries: Sequence[Entry]) -> None:
        """Claim what was notified; the entries are done with when that has committed, whatever the claim found."""
        if not entries:
            return
        ids = [event_id for _, fields in entries if (event_id := streams.event_id(fields)) is not None]
        await _to_its_end(self._start(connection, ids))
        hit(self._settings, "claim_committed")
        await streams.finish(self._redis, name, streams.GROUP, [entry_id for entry_id, _ in entries])

    async def _start(self, connection: Connection, ids: Sequence[UUID]) -> None:
        for event in await self._claim(connection, ids):
            self._executor.start(event)

    async def _claim(self, connection: Connection, ids: Sequence[UUID]) -> list[Claimed]:
        worker = self._lease.worker
        arguments = (list(ids), worker, self._executor.poison_suspects, self._settings.concurrency)
        try:
            rows = await self._claimed(connection, arguments)
        except POSTGRES_ERRORS:
            self._executor.unsettled.reply_lost(ids)
            raise
        for row in rows:
            delay_s = (row["claimed_at"] - row["due_at"]).total_seconds()
            self._meters.observe("callboard_event_start_delay_seconds", delay_s, (row["type"],))
        return [claimed(row, worker) for row in rows]

    async def _claimed(self, connection: Connection, arguments: tuple[Any, ...]) -> list[asyncpg.Record]:
        for left in reversed(range(CLAIM_TRIES)):
            try:
                async with asyncio.timeout(CLAIM_TIMEOUT_S):
                    return list(await connection.fetch(SQL["claim"], *arguments))
            except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError):
                if not left:
                    raise
        return []


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Where the worker stops, what is just being claimed is still started: it will be handed back with the rest."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=STOP_S)
        raise
