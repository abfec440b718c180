"""arq: host and alarm clock. It carries no event and holds no truth: the sweeper works without it, too."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from arq import ArqRedis, Worker, cron, func
from arq.connections import RedisSettings
from msgspec import msgpack
from redis.asyncio.client import Pipeline
from redis.exceptions import NoPermissionError, ResponseError

from service.core.errors import text_of
from service.core.redis_address import redis_address
from service.core.servers import REDIS_ERRORS, Guard, redis_pool
from service.core.settings import Settings
from service.core.streams import names_of, wrong_type

HORIZON_S: Final = 3600.0
JOB_TIMEOUT_S: Final = 60
CONNECTIONS_MAX: Final = 20
WAKE: Final = "wake"
ARQ: Final = "arq:"  # how the names of arq's own keys begin
REFUSED_S: Final = 300.0
ACL: Final = "deploy/README.md lists the keys and commands it needs"

Turn = Callable[[], Awaitable[int]]

log = logging.getLogger("callboard.scheduler")


class Scheduler:
    """Sets alarms: one deferred job for each second in which something falls due, within the coming hour."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis: Final = redis

    async def wake_in(self, wait_s: float) -> None:
        """After so many seconds, by arq's own clock, which is this machine's. An alarm that another machine would hear
        too early or too late does no harm, nor does one that Redis does not take: the sweeper looks every second."""
        if wait_s > HORIZON_S:
            return
        second = int(time.time() + wait_s) + 1
        try:
            await self._redis.enqueue_job(
                WAKE, _job_id=f"{WAKE}:{second}", _defer_until=datetime.fromtimestamp(second, UTC)
            )
        except REDIS_ERRORS as error:
            log.debug("no alarm set: %s", error)


class _PrefixedRedis(ArqRedis):
    """arq's client, for a prefix: the names of arq's keys are constants of its modules, and get it on their way out."""

    prefix = ""

    async def execute_command(self, *words: Any, **options: Any) -> Any:
        return await super().execute_command(*_prefixed(self.prefix, words), **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "Pipeline":
        pipe = _PrefixedPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipe.prefix = self.prefix
        return pipe


class _PrefixedPipeline(Pipeline):
    prefix = ""

    def execute_command(self, *words: Any, **options: Any) -> Any:
        return super().execute_command(*_prefixed(self.prefix, words), **options)


def _prefixed(prefix: str, words: Sequence[Any]) -> list[Any]:
    """Only names of keys begin so: jobs are bytes, and their ids are ours."""
    return [f"{prefix}{word}" if isinstance(word, str) and word.startswith(ARQ) else word for word in words]


def open_arq(settings: Settings, guard: Guard | None = None) -> ArqRedis:
    """A client with time limits, which arq's own settings can't give; msgpack, so that a job can't carry code."""
    pool = redis_pool(settings, most=CONNECTIONS_MAX)
    if guard is not None:
        guard(pool)
    client = _PrefixedRedis(
        pool,
        job_serializer=msgpack.Encoder(enc_hook=str).encode,
        job_deserializer=msgpack.decode,
        default_queue_name=queue_of(settings),
    )
    client.prefix = settings.redis_prefix
    return client


def arq_settings(settings: Settings) -> RedisSettings:
    """For `arq --check`, which opens a connection of its own."""
    where = redis_address(settings.redis_url)
    return RedisSettings(
        host=where.host,
        port=where.port,
        unix_socket_path=where.path or None,
        database=where.db,
        username=where.username or None,
        password=where.password or None,
        ssl=where.secure,
        **where.tls,  # type: ignore[arg-type]
    )


def queue_of(settings: Settings) -> str:
    return f"{names_of(settings).arq}:queue"


def jobs(settings: Settings, turn: Turn, retain: Turn) -> dict[str, Any]:
    """The arguments of arq's worker: what it runs, and its bounds."""

    async def wake(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> int:
        return await turn()

    async def retention(ctx: dict[Any, Any]) -> int:
        return await retain()

    return {
        "cron_jobs": [cron(retention, second=0, timeout=JOB_TIMEOUT_S, keep_result=0, max_tries=1)],
        "functions": [func(wake, name=WAKE, keep_result=0, timeout=JOB_TIMEOUT_S, max_tries=1)],
        "queue_name": queue_of(settings),
        "max_jobs": 10,
        "poll_delay": 1.0,
        "timezone": UTC,
        "log_results": False,
        "job_serializer": msgpack.Encoder(enc_hook=str).encode,
        "job_deserializer": msgpack.decode,
    }


async def run_arq(settings: Settings, redis: ArqRedis, turn: Turn, retain: Turn) -> None:
    """arq's worker as one supervised child: any loss of Redis ends it, and the supervisor starts another.

    Where arq may not use Redis the worker lives on without alarms: the sweeper looks each second at what is due.
    """
    while True:
        try:
            await _run_worker(Worker(handle_signals=False, redis_pool=redis, **jobs(settings, turn, retain)))
        except NoPermissionError as error:
            log.warning("arq sets no alarms, what is due starts up to a second later: %s (%s)", text_of(error), ACL)
            await asyncio.sleep(REFUSED_S)
        except ResponseError as error:
            if wrong_type(error):
                await redis.delete(queue_of(settings))  # no zset: made anew
            raise


async def _run_worker(worker: Worker) -> None:
    try:
        await worker.async_run()
    finally:
        for task in worker.tasks.values():
            task.cancel()
        await asyncio.gather(*worker.tasks.values(), return_exceptions=True)
