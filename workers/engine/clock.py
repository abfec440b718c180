"""arq: host and alarm clock. It carries no event and holds no truth: the sweeper rings without it, too."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

from arq import ArqRedis, Worker, cron, func
from msgspec import msgpack
from redis.asyncio import BlockingConnectionPool

from service.resources import REDIS_ERRORS, REDIS_TIMEOUT_S
from service.settings import Settings

HORIZON_S: Final = 3600.0
JOB_TIMEOUT_S: Final = 60
QUEUE: Final = "callboard:arq"
WAKE: Final = "wake"

Turn = Callable[[], Awaitable[int]]

log = logging.getLogger("callboard.clock")


class Clock:
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


def open_arq(settings: Settings) -> ArqRedis:
    """A client with time limits, which arq's own settings can't give; msgpack, so that a job can't carry code."""
    pool = BlockingConnectionPool.from_url(
        settings.redis_url,
        max_connections=20,
        timeout=REDIS_TIMEOUT_S,
        socket_timeout=REDIS_TIMEOUT_S,
        socket_connect_timeout=REDIS_TIMEOUT_S,
        socket_keepalive=True,
        health_check_interval=15,
    )
    return ArqRedis(
        pool,
        job_serializer=msgpack.Encoder(enc_hook=str).encode,
        job_deserializer=msgpack.decode,
        default_queue_name=QUEUE,
    )


def jobs(turn: Turn, retain: Turn) -> dict[str, Any]:
    """The arguments of arq's worker: what it runs, and its bounds."""

    async def wake(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> int:
        return await turn()

    async def retention(ctx: dict[Any, Any]) -> int:
        return await retain()

    return {
        "cron_jobs": [cron(retention, second=0, timeout=JOB_TIMEOUT_S, keep_result=0, max_tries=1)],
        "functions": [func(wake, name=WAKE, keep_result=0, timeout=JOB_TIMEOUT_S, max_tries=1)],
        "queue_name": QUEUE,
        "max_jobs": 10,
        "poll_delay": 1.0,
        "timezone": UTC,
        "log_results": False,
        "job_serializer": msgpack.Encoder(enc_hook=str).encode,
        "job_deserializer": msgpack.decode,
    }


async def run_arq(redis: ArqRedis, turn: Turn, retain: Turn) -> None:
    """arq's worker as one supervised child: any loss of Redis ends it, and the supervisor starts another."""
    worker = Worker(handle_signals=False, redis_pool=redis, **jobs(turn, retain))
    try:
        await worker.async_run()
    finally:
        for task in worker.tasks.values():
            task.cancel()
        await asyncio.gather(*worker.tasks.values(), return_exceptions=True)
