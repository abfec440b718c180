"""Postgres and Redis: how they are opened, and which of their errors pass by themselves."""

import asyncio
import math
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final, TypeAlias

import asyncpg
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import BusyLoadingError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

import sql
from service.core import postgres_url
from service.core.redis_address import redis_address
from service.core.settings import Settings

STATEMENT_TIMEOUT_S: Final = 10.0
CONNECT_TIMEOUT_S: Final = 5.0
ACQUIRE_TIMEOUT_S: Final = 5.0
REDIS_TIMEOUT_S: Final = 5.0
REDIS_MAX: Final = 50

_SESSION: Final = sql.queries("servers")["begin"]

Connection: TypeAlias = asyncpg.Connection
Pool: TypeAlias = asyncpg.Pool

# 08 connection, 53 out of resources, 57P shutting down, 40 serialization and deadlock, 25006 read-only (a failover),
# 42P01 and 42703 what the next migration brings, 55P03 and 57014 a lock or a statement that took too long, 28 and 3D000
# a login that is refused, 42501 a right that was taken: none of them is the fault of what is written
_TRANSIENT_STATES: Final = (
    *("08", "53", "57P", "40", "25006", "58030", "42P01", "42703", "55P03", "57014", "28", "3D000", "42501"),
)
_POOLER_IS_FULL: Final = re.compile(r"max clients reached|no more connections allowed|EMAXCONN", re.IGNORECASE)
_TRANSIENT_REPLIES: Final = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "OOM")


async def connect(settings: Settings, application: str) -> Connection:
    """One connection to hold; every statement on it has a deadline on both sides."""
    async with AsyncExitStack() as undo:
        connection: Connection = await asyncpg.connect(**_arguments(settings, application))
        undo.callback(connection.terminate)
        await _begin(connection)
        undo.pop_all()
        return connection


async def open_plain(settings: Settings, application: str) -> Connection:
    """A connection whose session nothing was set in: behind a pooler it may not be ours alone."""
    # Without statements that stay prepared: other sessions may be given the server's connection.
    return await asyncpg.connect(**_arguments(settings, application), statement_cache_size=0)


class Held:
    """A connection kept open, opened again when dropped."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self._connect: Final = connect
        self._open: Connection | None = None

    async def connection(self) -> Connection:
        if self._open is None or self._open.is_closed():
            self._open = await self._connect()
        return self._open

    def drop(self) -> None:
        """Terminate rather than close: a close would wait for a server that may be gone."""
        if self._open is not None:
            with suppress(OSError, asyncpg.InterfaceError):
                self._open.terminate()
            self._open = None


@asynccontextmanager
async def open_pool(settings: Settings, application: str) -> AsyncIterator[Pool]:
    """A pool for reads, of CALLBOARD_POOL at most; it connects when first used, so a boot does not need Postgres."""
    pool: Pool = asyncpg.create_pool(
        min_size=0,
        max_size=settings.pool,
        init=_begin_in_pool,
        reset=_keep_session,
        **_arguments(settings, application),
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


def _arguments(settings: Settings, application: str) -> dict[str, Any]:
    address = postgres_url.read(settings.database_url)
    name = f"callboard {application}" + (f" ({address.application_name})" if address.application_name else "")
    return {
        **address.arguments(),
        "timeout": address.connect_timeout_s or CONNECT_TIMEOUT_S,
        "command_timeout": STATEMENT_TIMEOUT_S,
        # The two that a PgBouncer takes as it comes; the others are set by SQL.
        "server_settings": {"application_name": name, "timezone": "UTC", **address.server_settings()},
    }


async def _begin(connection: Any) -> None:
    await connection.execute(_SESSION)


async def _begin_in_pool(connection: Any) -> None:
    """Raises ReadOnlySQLTransactionError for a standby.

    Behind an address that leads elsewhere after a failover the pool would keep it, and a worker read what was before.
    """
    if getattr(connection.get_settings(), "in_hot_standby", "off") == "on":  # servers before 14 don't say
        raise asyncpg.ReadOnlySQLTransactionError("this server is a standby")
    await _begin(connection)


async def _keep_session(_: Any) -> None:
    """The driver's own reset would take the session's deadlines back; what is still open it has rolled back by now."""


Guard: TypeAlias = Callable[[BlockingConnectionPool], None]


def redis_pool(settings: Settings, timeout_s: float = REDIS_TIMEOUT_S, most: int = REDIS_MAX) -> BlockingConnectionPool:
    """At most `most` connections, each command with a time limit. Raises StartError where REDIS_URL is wrong."""
    return BlockingConnectionPool(
        max_connections=most,
        timeout=math.ceil(timeout_s),
        socket_timeout=timeout_s,
        socket_connect_timeout=REDIS_TIMEOUT_S,
        health_check_interval=15,
        **redis_address(settings.redis_url).connection(),
    )


@asynccontextmanager
async def open_redis(
    settings: Settings, timeout_s: float = REDIS_TIMEOUT_S, guard: Guard | None = None
) -> AsyncIterator[Redis]:
    """A client with a bounded pool; `timeout_s` must exceed the longest BLOCK asked of it.

    `guard` is handed the pool before it connects.
    """
    pool = redis_pool(settings, timeout_s)
    if guard is not None:
        guard(pool)
    client = Redis(connection_pool=pool)
    try:
        yield client
    finally:
        await client.aclose()
        await pool.disconnect()


def pooler_is_full(error: asyncpg.PostgresError) -> bool:
    """Poolers refuse with SQLSTATEs of their own: Supabase's XX000, PgBouncer's 08P01."""
    return bool(_POOLER_IS_FULL.search(str(error)))


def postgres_passes(error: BaseException) -> bool:
    """Whether Postgres is away, full, restarting or read-only, so that the same statement may succeed later."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "").startswith(_TRANSIENT_STATES) or pooler_is_full(error)
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
