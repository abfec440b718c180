"""Before a program starts: whether its servers are such that Callboard can use. One that is away is waited for."""

import asyncio
import logging
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.core.errors import CallboardError, StartError
from service.core.postgres_preflight import ProgramName, check_postgres, refuse
from service.core.redis_address import RedisAddress, redis_address
from service.core.redis_errors import ForeignRedis, sentence_of
from service.core.redis_owner import RedisOwner
from service.core.servers import REDIS_ERRORS, open_redis
from service.core.settings import Settings
from service.core.transport import warn_if_exposed

TIMEOUT_S: Final = 10.0
TLS_TIMEOUT_S: Final = 3.0
OLDEST: Final = (6, 2)

log = logging.getLogger("callboard.redis")


def preflight(settings: Settings, program: ProgramName) -> None:
    """Look at Postgres and Redis. It may be called in a running loop that has nothing to do yet.

    Raises StartError with a sentence for each fault.
    """

    async def check() -> None:
        faults = await asyncio.gather(check_postgres(settings, program), check_redis(settings), return_exceptions=True)
        for error in faults:
            if error is not None and not isinstance(error, CallboardError):
                raise error
        refuse([str(error) for error in faults if error is not None])

    with ThreadPoolExecutor(1) as alone:
        alone.submit(lambda: asyncio.run(check())).result()


def check_port(settings: Settings) -> None:
    """Raises StartError where the API can't listen on its port."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        socket.create_server((settings.host, settings.port), family=family).close()
    except OSError as error:
        raise StartError(
            f"Port {settings.port} on {settings.host} can't be had ({error.strerror}). "
            "Stop the program that has it, or set CALLBOARD_PORT to another one."
        ) from error


async def check_redis(settings: Settings) -> None:
    """Raises StartError with one sentence where REDIS_URL, or the Redis behind it, is wrong; not where it is away."""
    where = redis_address(settings.redis_url)
    await warn_if_exposed("REDIS_URL", [where.host], where.weakness)
    try:
        async with asyncio.timeout(TIMEOUT_S), open_redis(settings) as redis:
            await _check_kind(redis)
            await _check_owner(settings, redis)
    except REDIS_ERRORS as error:
        sentence = sentence_of(error)
        if sentence is None and isinstance(error, RedisConnectionError | RedisTimeoutError):
            sentence = await _tls_of(where)
        if sentence is not None:
            raise StartError(sentence) from None


async def _check_owner(settings: Settings, redis: Redis) -> None:
    try:
        await RedisOwner(settings).look(redis)
    except ForeignRedis as error:
        raise StartError(
            f"{error}. Set CALLBOARD_REDIS_PREFIX, or another database in REDIS_URL, for one of the two; "
            "or take this Redis over: callboard migrate --adopt-redis"
        ) from None
    except RedisConnectionError as error:
        log.warning("Redis is not used before it is known whose it is: %s", error)


async def _check_kind(redis: Redis) -> None:
    with suppress(NoPermissionError):  # a user who may not ask is believed
        facts = await redis.info()
        if facts.get("cluster_enabled"):
            raise StartError(
                "REDIS_URL: that is a Redis Cluster, and Callboard needs all its keys on one server. "
                "Use a Redis with cluster mode off; a replica for failover is fine."
            )
        version = str(facts.get("redis_version", ""))
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
        if numbers and numbers < OLDEST:
            raise StartError(f"REDIS_URL: that is Redis {version}, and Callboard needs 6.2 or newer.")


async def _tls_of(where: RedisAddress) -> str | None:
    """With the wrong one of redis:// and rediss:// a server hangs up or says nothing, as one does that is away: the
    sentence that tells them apart."""
    if where.path:
        return None
    anyone = ssl.create_default_context()
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(TLS_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(where.host, where.port, ssl=None if where.secure else anyone)
            try:
                writer.write(b"PING\r\n")  # with TLS the handshake is answer enough
                answers = not where.secure or (await reader.readline()).startswith((b"+PONG", b"-"))
            finally:
                writer.transport.abort()
        if answers and where.secure:
            return "REDIS_URL: that port speaks no TLS, so that the address has to begin with redis://."
        return "REDIS_URL: that port speaks TLS, so that the address has to begin with rediss://." if answers else None
    return None
