"""Ring behind the commit, in batches, while nobody waits. What can't be rung now, the sweeper rings later."""

import asyncio
import logging
from collections import deque
from typing import Final
from uuid import UUID

from redis.asyncio import Redis

from service import stream
from service.resources import REDIS_ERRORS

BATCH: Final = 1000
WAITING_MAX: Final = 100_000
PAUSE_S: Final = 1.0

log = logging.getLogger("callboard.outbox")


class Outbox:
    """Event ids on their way to the work stream; bounded, the oldest fall out first (the sweeper finds them)."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Final = redis
        self._waiting: Final[deque[UUID]] = deque(maxlen=WAITING_MAX)
        self._more: Final = asyncio.Event()

    def ring(self, event_id: UUID) -> None:
        self._waiting.append(event_id)
        self._more.set()

    async def run(self) -> None:
        while True:
            await self._more.wait()
            batch = self._batch()
            if not self._waiting:
                self._more.clear()
            try:
                await stream.ring(self._redis, batch)
            except REDIS_ERRORS as error:
                log.warning("Redis is away, %d events wait for the sweeper: %s", len(batch), error)
                await asyncio.sleep(PAUSE_S)

    async def drained(self) -> None:
        """Ring what is left, once: called when the API stops."""
        while self._waiting:
            await stream.ring(self._redis, self._batch())

    def _batch(self) -> list[UUID]:
        return [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
