"""Notify the workers behind the commit, in batches, while nobody waits. What fails now, the sweeper does later."""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.core import streams
from service.core.errors import text_of
from service.core.redis_errors import reason_of
from service.core.servers import REDIS_ERRORS
from service.core.streams import Names

BATCH: Final = 1000
WAITING_MAX: Final = 100_000
PAUSE_S: Final = 1.0

log = logging.getLogger("callboard.notifier")


class Notifier:
    """Event ids on their way to the work stream; bounded, the oldest fall out first (the sweeper finds them)."""

    def __init__(self, redis: Redis, names: Names) -> None:
        self._redis: Final = redis
        self._names: Final = names
        self._waiting: Final[deque[UUID]] = deque(maxlen=WAITING_MAX)
        self._more: Final = asyncio.Event()

    def notify(self, event_id: UUID) -> None:
        self._waiting.append(event_id)
        self._more.set()

    async def run(self) -> None:
        while True:
            await self._more.wait()
            batch = self._batch()
            if not self._waiting:
                self._more.clear()
            try:
                await self._notify(batch)
            except REDIS_ERRORS as error:
                why = f"Redis is {reason_of(error)}, %d events wait for the sweeper: %s"
                log.warning(why, len(batch), text_of(error))
                await asyncio.sleep(PAUSE_S)

    async def drained(self) -> None:
        """Notify of what is left, once: called when the API stops."""
        while self._waiting:
            await self._notify(self._batch())

    async def _notify(self, batch: Sequence[UUID]) -> None:
        try:
            await streams.notify(self._redis, batch, self._names.work)
        except RedisError as error:
            if not streams.wrong_type(error):
                raise
            await streams.mend(self._redis, self._names)
            await streams.notify(self._redis, batch, self._names.work)

    def _batch(self) -> list[UUID]:
        return [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
