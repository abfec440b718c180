"""Before a program starts: whether its Redis is one that Callboard can use. One that is away is waited for."""

import asyncio
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError

from service.errors import StartError
from service.redis_address import RedisAddress, redis_address
from service.redis_faults import ForeignRedis, sentence_of
from service.redis_owner import RedisOwner
from service.resources import REDIS_ERRORS, open_redis
from service.settings import Settings

TIMEOUT_S: Final = 10.0
TLS_TIMEOUT_S: Final = 3.0
OLDEST: Final = (6, 2)


def preflight(settings: Settings) -> None:
    """As `check_redis`, for who may or may not be in a running loop."""
    with ThreadPoolExecutor(1) as alone:
        alone.submit(lambda: asyncio.run(check_redis(settings))).result()


async def check_redis(settings: Settings) -> None:
    """Raises StartError with one sentence where REDIS_URL, or the Redis behind it, is wrong; not where it is away."""
    try:
        async with asyncio.timeout(TIMEOUT_S), open_redis(settings) as redis:
            await _check_kind(redis)
            await RedisOwner(settings).look(redis)
    except ForeignRedis as error:
        raise StartError(
            f"{error}. Set CALLBOARD_REDIS_PREFIX, or another database in REDIS_URL, for one of the two; "
            "or take this Redis over: callboard migrate --adopt-redis"
        ) from None
    except REDIS_ERRORS as error:
        sentence = sentence_of(error)
        where = redis_address(settings.redis_url)
        if sentence is None and isinstance(error, RedisConnectionError) and await _speaks_tls(where):
            sentence = "REDIS_URL: that port speaks TLS, so that the address has to begin with rediss://."
        if sentence is not None:
            raise StartError(sentence) from None


async def _check_kind(redis: Redis) -> None:
    with suppress(NoPermissionError):  # a user who may not ask is believed
        facts = await redis.info()
        if facts.get("cluster_enabled"):
            raise StartError(
                "REDIS_URL: that is a Redis Cluster, and Callboard needs all its keys on one server. "
                "Use a Redis with cluster mode off; a replica for failover is fine."
            )
        version = str(facts.get("redis_version", ""))
        numbers = tuple(int(each) for each in version.split(".")[:2] if each.isdecimal())
        if numbers and numbers < OLDEST:
            raise StartError(
                f"REDIS_URL: that is Redis {version}, and Callboard needs {OLDEST[0]}.{OLDEST[1]} or newer."
            )


async def _speaks_tls(where: RedisAddress) -> bool:
    """A server that speaks TLS hangs up on who does not, as one does that has just ended."""
    if where.path or where.secure:
        return False
    anyone = ssl.create_default_context()
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(TLS_TIMEOUT_S):
            _, writer = await asyncio.open_connection(where.host, where.port, ssl=anyone)
            writer.transport.abort()
        return True
    return False
