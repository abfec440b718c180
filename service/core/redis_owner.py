"""Whose the Redis is: each database of ours has an id, and the Redis that notifies its workers has it as a mark.

Two Callboards on the same keys would take each other's events. So each connection looks at the mark before its first
command, and one look in two seconds finds a mark that was changed while connections were open. A Redis without a mark
(new, or emptied) gets that of whoever comes first.
"""

import asyncio
import logging
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

import sql
from service.core.errors import StartError, text_of
from service.core.redis_errors import ForeignRedis, RedisState, reason_of
from service.core.servers import POSTGRES_ERRORS, REDIS_ERRORS, connect, open_redis
from service.core.settings import Settings
from service.core.streams import Names, check, epoch, may_notify, mend, names_of, written

LOOK_S: Final = 2.0
LOOK_TIMEOUT_S: Final = 2.0
SQL: Final = sql.queries("redis_owner")

log = logging.getLogger("callboard.redis")


class RedisOwner:
    """What one program knows of its Redis: whose it is and, where it probes it, whether it does what is asked of it."""

    def __init__(self, settings: Settings) -> None:
        self.state: Final = RedisState()
        self._settings: Final = settings
        self._names: Final = names_of(settings)
        self._alone: Final = asyncio.Lock()
        self._pools: Final[list[BlockingConnectionPool]] = []
        self._id = ""

    def guard(self, pool: BlockingConnectionPool) -> None:
        """From now on no connection of `pool` is used before it has seen our mark."""
        self._pools.append(pool)
        pool.connection_kwargs["redis_connect_func"] = self._connected

    async def look(self, redis: Redis) -> str:
        """Which memory this Redis has, and that it is ours; marks that are gone are written.

        Raises ForeignRedis, behind which no connection is left open, and REDIS_ERRORS.
        """
        try:
            stored_epoch, mark = await redis.mget(self._names.epoch, self._names.owner)
            own_id = await self._own_id()
            if mark is None:
                mark = (await written(redis, self._names.owner, own_id)).encode()
            self._check(mark, own_id)
            return stored_epoch.decode() if stored_epoch else await epoch(redis, self._names)
        except ForeignRedis:
            await self._hang_up()
            raise

    async def watch(self, redis: Redis) -> None:
        """Look until cancelled; what changes is said once."""
        before = None
        while True:
            reason = await self.probe(redis)
            if reason not in (before, None):
                log.warning("Redis can't be used: %s", reason)
            before = reason
            await asyncio.sleep(LOOK_S)

    async def probe(self, redis: Redis) -> str | None:
        """What is wrong with Redis now, in words: found out by doing what a doorbell needs."""
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                await self.look(redis)
                await may_notify(redis, self._names)
                await mend(redis, self._names)
                await check(redis, self._names)
        except REDIS_ERRORS as error:
            self.state.failed(error)
            return text_of(error)
        self.state.worked()
        return None

    async def _connected(self, connection: Any) -> None:
        """redis-py's handshake, and ours behind it."""
        await connection.on_connect()
        own_id = await self._own_id()
        await connection.send_command("GET", self._names.owner, check_health=False)
        try:
            mark = await connection.read_response()
        except ResponseError as error:
            if reason_of(error) == "refused" and not str(error).startswith("WRONGTYPE"):
                raise
            return  # a mark that can't be read for a while, or is none: the next look mends it
        if mark is not None:
            self._check(mark, own_id)

    def _check(self, mark: bytes, own_id: str) -> None:
        if mark.decode(errors="replace") != own_id:
            raise ForeignRedis(
                f"Redis belongs to Callboard {mark.decode(errors='replace')[:64]!r}, and this is {own_id}"
            )

    async def _own_id(self) -> str:
        if not self._id:
            async with self._alone:
                self._id = self._id or await owner_id(self._settings)
        return self._id

    async def _hang_up(self) -> None:
        """Nothing that waits at the Redis of another owner may get an answer from it."""
        for pool in self._pools:
            await pool.disconnect(inuse_connections=True)


async def owner_id(settings: Settings) -> str:
    """The id of this database. Raises redis-py's ConnectionError where Postgres can't say it: it is not known then
    whether Redis may be used."""
    try:
        connection = await connect(settings, "owner")
        try:
            return str(await connection.fetchval(SQL["owner"]))
        finally:
            connection.terminate()
    except POSTGRES_ERRORS as error:
        raise RedisConnectionError(f"whose Redis this is can't be found out: {text_of(error)}") from error


async def adopt(settings: Settings) -> tuple[str, str]:
    """Make the Redis of REDIS_URL ours, whoever had it: the id of its owner before and now.

    Dead letters go on behind those that are in its stream. Raises StartError where Postgres or Redis can't be asked.
    """
    keys = names_of(settings)
    try:
        own_id = await owner_id(settings)
        async with asyncio.timeout(LOOK_TIMEOUT_S * 5), open_redis(settings) as redis:
            if await redis.type(keys.owner) != b"string":
                await redis.delete(keys.owner)
            before = (await redis.get(keys.owner) or b"").decode(errors="replace")
            if before != own_id:
                await _go_on_behind(settings, redis, keys)
                await redis.set(keys.owner, own_id)
    except (*REDIS_ERRORS, *POSTGRES_ERRORS) as error:
        raise StartError(f"Redis can't be taken over: {text_of(error)}.") from None
    return before, own_id


async def _go_on_behind(settings: Settings, redis: Redis, keys: Names) -> None:
    """Redis refuses entries of the dead stream whose ids are smaller than one that it has seen."""
    try:
        facts = await redis.xinfo_stream(keys.dead)
    except ResponseError:  # there is none
        return
    last = int(facts["last-generated-id"].decode().partition("-")[0])
    connection = await connect(settings, "owner")
    try:
        await connection.fetchval(SQL["letters_behind"], last)
    finally:
        connection.terminate()
