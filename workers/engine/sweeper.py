"""Upkeep, once a second: free what dead workers held, ring what is due and was not rung, notice a Redis that forgot."""

import asyncio
import logging
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from service import stream
from service.resources import POSTGRES_ERRORS, Connection, connect
from service.settings import Settings
from workers.engine.lease import LEASE, SQL, Lease

TURN_S: Final = 1.0
LAG: Final = timedelta(seconds=5)
STREAM_MAX: Final = 50_000
DUTY: Final = timedelta(seconds=5)

log = logging.getLogger("callboard.sweeper")


class Sweeper:
    """One connection, one turn a second; `turn()` is also what the alarm clock calls."""

    def __init__(self, settings: Settings, redis: Redis, lease: Lease) -> None:
        self._settings: Final = settings
        self._redis: Final = redis
        self._lease: Final = lease
        self._alone: Final = asyncio.Lock()
        self._connection: Connection | None = None
        self._held_since: float | None = None

    async def run(self) -> None:
        """Turn until cancelled; an error ends it, and the supervisor starts it again."""
        try:
            while True:
                await self.turn()
                await asyncio.sleep(TURN_S)
        finally:
            self._drop()

    async def turn(self) -> int:
        """Rescue and sweep once; returns how many events were rung."""
        async with self._alone:
            connection = self._connection or await connect(self._settings, "upkeep")
            self._connection = connection
            row = await connection.fetchrow(SQL["due"])
            if row is None:
                return 0
            rescued = await self._rescue(connection) if row["expired"] else 0
            mark = await stream.epoch(self._redis)
            if mark != row["epoch"]:
                await connection.execute(SQL["new_epoch"], row["epoch"], mark)
            return rescued + (await self._sweep(connection) if row["unrung"] or row["stale"] else 0)

    async def _rescue(self, connection: Connection) -> int:
        """After a whole lease of unbroken renewals of our own: after an outage the living renew before anyone judges."""
        now = asyncio.get_running_loop().time()
        if not self._lease.held:
            self._held_since = None
            return 0
        self._held_since = now if self._held_since is None else self._held_since
        if now - self._held_since < LEASE.total_seconds():
            return 0
        ids = [row["event_id"] for row in await connection.fetch(SQL["rescue"])]
        if ids:
            log.warning("%d events of a dead worker go on elsewhere", len(ids))
            await stream.ring(self._redis, ids, stream.FRONT)
        return len(ids)

    async def _sweep(self, connection: Connection) -> int:
        if await connection.fetchrow(SQL["hold_duty"], "sweep", self._lease.worker, DUTY) is None:
            return 0
        room = STREAM_MAX - int(await self._redis.xlen(stream.WORK))
        if room <= 0:
            return 0
        read_to = [await self._read_to(name) - LAG for name in (stream.WORK, stream.FRONT)]
        ids: list[UUID] = [row["event_id"] for row in await connection.fetch(SQL["sweep"], *read_to, room)]
        if ids:
            await stream.ring(self._redis, ids)
        return len(ids)

    async def _read_to(self, name: str) -> datetime:
        """The moment up to which the group has read the stream, on Postgres' clock; now, if nothing is undelivered."""
        assert self._connection is not None
        seconds, micros = await self._redis.time()
        now: datetime = await self._connection.fetchval(SQL["now"])
        with suppress(ResponseError):  # no such stream: nothing is undelivered
            for group in await self._redis.xinfo_groups(name):
                last = group["last-delivered-id"].decode()
                if group["name"].decode() == stream.GROUP and await self._redis.xrange(name, f"({last}", count=1):
                    redis_now = datetime.fromtimestamp(int(seconds), UTC) + timedelta(microseconds=int(micros))
                    read = datetime.fromtimestamp(int(last.split("-")[0]) / 1000, UTC)
                    return now - (redis_now - read)
        return now

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(*POSTGRES_ERRORS):
                self._connection.terminate()
            self._connection = None
