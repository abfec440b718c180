"""Retention, on by default: what has ended long ago goes, in small batches; what is on its way is never touched."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import ResponseError

import sql
from schemas.identity import first_id, uuid7
from service.core import streams
from service.core.servers import REDIS_ERRORS, Connection, connect
from service.core.settings import Settings
from service.core.streams import Names
from workers.engine.lease import Lease

EVERY: Final = timedelta(minutes=1)
SELDOM: Final = timedelta(hours=1)  # what has no index by time is read from end to end
BATCH: Final = 500
BATCHES: Final = 100  # a turn: 50,000 events a minute
PAUSE_S: Final = 0.05
GONE_MS: Final = 60_000
SQL: Final = {**sql.queries("retention"), **sql.queries("lease"), **sql.queries("health")}
# Only what is still gone and still empty-handed: DELCONSUMER would drop what is pending.
FORGET_CONSUMER: Final = """
for _, c in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  if c[2] == ARGV[2] and c[4] == 0 and c[6] > tonumber(ARGV[3]) then
    return redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
  end
end
return -1
"""

log = logging.getLogger("callboard.retention")


async def retain_often(turn: Callable[[], Awaitable[int]]) -> None:
    """A turn each minute, until cancelled: retention does not wait for arq, whose keys may be gone or out of reach."""
    while True:
        await asyncio.sleep(EVERY.total_seconds())
        await turn()


async def retain(settings: Settings, redis: Redis, lease: Lease) -> int:
    """One turn, by one process at a time, at most once a minute; returns how many events were forgotten."""
    connection = await connect(settings, "retention")
    try:
        if await connection.fetchrow(SQL["hold_duty"], "retention", UUID(int=0), EVERY) is None:
            return 0
        forgotten = await _events(settings, connection)
        await connection.execute(SQL["forget_letters"], settings.dead_retention_days, BATCH)
        await connection.execute(SQL["forget_workers"])
        if await connection.fetchrow(SQL["hold_duty"], "long_retention", uuid7(), SELDOM) is not None:
            await _long_retention(settings, connection)
        with suppress(*REDIS_ERRORS):  # they are looked for again in a minute
            await _letters_in_redis(connection, redis, streams.names_of(settings).dead)
            await _consumers(connection, redis, streams.names_of(settings), lease)
        return forgotten
    finally:
        await connection.close(timeout=1)


async def _events(settings: Settings, connection: Connection) -> int:
    now: datetime = await connection.fetchval(SQL["now"])
    before = first_id(now - timedelta(days=settings.retention_days))
    forgotten, after = 0, UUID(int=0)
    for _ in range(BATCHES):
        rows = await connection.fetch(SQL["old_events"], before, settings.retention_days, BATCH, after)
        if not rows:
            break
        after = rows[-1]["event_id"]
        forgotten += int((await connection.execute(SQL["forget"], [row["event_id"] for row in rows])).split()[-1])
        await asyncio.sleep(PAUSE_S)
    if forgotten:
        log.info("%d events ended more than %d days ago and are forgotten", forgotten, settings.retention_days)
    return forgotten


async def _long_retention(settings: Settings, connection: Connection) -> None:
    """Deletes operations, states and documents that are older than their settings say; 0 days deletes none."""
    for statement, days in (
        (SQL["forget_operations"], settings.audit_retention_days),
        (SQL["forget_states"], settings.state_retention_days),
        (SQL["forget_documents"], settings.document_retention_days),
    ):
        for _ in range(BATCHES if days else 0):
            if int((await connection.execute(statement, days, BATCH)).split()[-1]) < BATCH:
                break
            await asyncio.sleep(PAUSE_S)


async def _letters_in_redis(connection: Connection, redis: Redis, name: str) -> None:
    """Trims the dead stream to the letters that are left: its entries have the letters' numbers."""
    oldest: int = await connection.fetchval(SQL["oldest_relayed"])
    with suppress(ResponseError):  # something else has its name: the relay says so
        await redis.xtrim(name, minid=f"{oldest}-0", approximate=False)


async def _consumers(connection: Connection, redis: Redis, names: Names, lease: Lease) -> None:
    """Names of readers that are gone, in the group's list."""
    alive = {str(row["worker"]) for row in await connection.fetch(SQL["workers"])} | {str(lease.worker)}
    for name in (names.work, names.front):
        with suppress(ResponseError):  # no such stream or group
            for consumer in await redis.xinfo_consumers(name, streams.GROUP):
                reader = consumer["name"].decode()
                if reader not in alive:
                    await redis.eval(FORGET_CONSUMER, 1, name, streams.GROUP, reader, str(GONE_MS))  # type: ignore[misc]
