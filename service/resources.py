"""Postgres and Redis: how they are opened, and which of their errors pass by themselves."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

import asyncpg
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import BusyLoadingError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.settings import Settings

STATEMENT_TIMEOUT_S: Final = 10.0
CONNECT_TIMEOUT_S: Final = 5.0
ACQUIRE_TIMEOUT_S: Final = 5.0
POOL_MAX: Final = 10
REDIS_TIMEOUT_S: Final = 5.0
REDIS_MAX: Final = 50

Connection: TypeAlias = asyncpg.Connection
Pool: TypeAlias = asyncpg.Pool

# 08 connection, 53 out of resources, 57P shutting down, 40 serialization and deadlock, 25006 read-only (a failover),
# 42P01 and 42703 what the next migration brings, 55P03 and 57014 a lock or a statement that took too long
_TRANSIENT_STATES: Final = ("08", "53", "57P", "40", "25006", "58030", "42P01", "42703", "55P03", "57014")
_TRANSIENT_REPLIES: Final = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "OOM")


async def connect(settings: Settings, application: str) -> Connection:
    """One connection to hold; every statement on it has a deadline on both sides."""
    return await asyncpg.connect(
        settings.database_url,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=STATEMENT_TIMEOUT_S,
        server_settings=_session(application),
    )


@asynccontextmanager
async def open_pool(settings: Settings, application: str) -> AsyncIterator[Pool]:
    """A pool for reads; it connects when first used, so that a boot does not need Postgres."""
    pool: Pool = asyncpg.create_pool(
        settings.database_url,
        min_size=0,
        max_size=POOL_MAX,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=STATEMENT_TIMEOUT_S,
        server_settings=_session(application),
    )
    await pool
    try:
        yield pool
    finally:
        try:
            async with asyncio.timeout(2):
                await pool.close()
        except TimeoutError:
            pool.terminate()


def _session(application: str) -> dict[str, str]:
    return {
        "application_name": f"callboard {application}",
        "timezone": "UTC",
        "statement_timeout": "10s",
        "lock_timeout": "5s",
        "idle_in_transaction_session_timeout": "10s",
        "jit": "off",
        # A plan kept from when a table was empty would scan it whole when a backlog comes.
        "plan_cache_mode": "force_custom_plan",
    }


@asynccontextmanager
async def open_redis(settings: Settings, timeout_s: float = REDIS_TIMEOUT_S) -> AsyncIterator[Redis]:
    """A client with a bounded pool; `timeout_s` must exceed the longest BLOCK asked of it."""
    pool = BlockingConnectionPool.from_url(
        settings.redis_url,
        max_connections=REDIS_MAX,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=REDIS_TIMEOUT_S,
        socket_keepalive=True,
        health_check_interval=15,
    )
    client = Redis(connection_pool=pool)
    try:
        yield client
    finally:
        await client.aclose()
        await pool.disconnect()


def postgres_passes(error: BaseException) -> bool:
    """Whether Postgres is away, full, restarting or read-only, so that the same statement may succeed later."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "").startswith(_TRANSIENT_STATES)
    return isinstance(error, OSError | TimeoutError | asyncpg.InterfaceError | asyncpg.InternalClientError)


def redis_passes(error: BaseException) -> bool:
    """Whether Redis is away, loading, full or read-only."""
    if isinstance(
        error, BusyLoadingError | ReadOnlyError | RedisConnectionError | RedisTimeoutError | OSError | TimeoutError
    ):
        return True
    return isinstance(error, ResponseError) and str(error).startswith(_TRANSIENT_REPLIES)


TIMEOUTS: Final = (TimeoutError, RedisTimeoutError)
REDIS_ERRORS: Final = (RedisError, OSError, TimeoutError)
POSTGRES_ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


def backoff_s(tries: int, base_s: float = 0.1, cap_s: float = 5.0) -> float:
    """Exponential with full jitter: uniform up to `base_s` · 2^tries, at most `cap_s`."""
    return random.uniform(0, min(cap_s, base_s * 2.0 ** min(tries, 32)))
