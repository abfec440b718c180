"""Who listens to events, in one process: one subscription and one poll of Postgres for all of them.

A doorbell (or the poll, where Redis is away) wakes a listener, which reads on in the log where it stopped: nothing is
queued for it, so that one that reads slowly gets larger pieces less often.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

from msgspec import Struct
from redis.asyncio import Redis

import sql
from service.core.errors import Unavailable
from service.core.servers import POSTGRES_ERRORS, Pool
from service.core.streams import Names
from service.feed import live_log
from service.feed.catch_up import FeedReader, Standing
from service.feed.cursor import ResumeCursor

POLL_S: Final = 1.0
LISTEN_S: Final = 2.0
COMMENT_S: Final = 15.0
COMMENT: Final = b": still here\n\n"
SQL: Final = sql.queries("listeners")

log = logging.getLogger("callboard.follow")


class Topic(Struct, eq=False):
    """An event that somebody listens to; its standing is None once it is forgotten."""

    standing: Standing | None
    listeners: set[asyncio.Event] = set()


class Listeners:
    def __init__(self, redis: Redis, names: Names, pool: Pool) -> None:
        self.redis: Final = redis
        self.names: Final = names
        self.pool: Final = pool
        self.stopping = False
        self._topics: Final[dict[UUID, Topic]] = {}

    @contextmanager
    def listening(self, event_id: UUID, standing: Standing) -> Iterator[tuple[Topic, asyncio.Event]]:
        """Raises Unavailable where this process stops."""
        self.admit()
        topic = self._topics.setdefault(event_id, Topic(standing))
        news = asyncio.Event()
        topic.listeners.add(news)
        try:
            yield topic, news
        finally:
            topic.listeners.discard(news)
            if not topic.listeners:
                self._topics.pop(event_id, None)

    def admit(self) -> None:
        if self.stopping:
            raise Unavailable("it stops")

    def stop(self) -> None:
        """Ends every stream: its client comes again, to another process."""
        self.stopping = True
        self._wake(self._topics)

    async def listen(self) -> None:
        async with self.redis.pubsub() as channel:
            await channel.subscribe(self.names.news, self.names.status_changed)
            self._wake(self._topics)  # what came while nobody listened was told to nobody
            while True:
                message = await channel.get_message(ignore_subscribe_messages=True, timeout=LISTEN_S)
                if message is None or not self._topics:
                    continue
                events = [event_id for event_id in _ids(message["data"]) if event_id in self._topics]
                if message["channel"] == self.names.status_changed.encode():
                    await self._look(events)
                self._wake(events)

    async def poll(self) -> None:
        """See what no doorbell tells, until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            await self._look(list(self._topics))

    async def _look(self, events: list[UUID]) -> None:
        if not events:
            return
        try:
            rows = await self.pool.fetch(SQL["standings"], events)
        except POSTGRES_ERRORS as error:
            log.warning("Postgres does not say how %d followed events stand: %s", len(events), error)
            return
        standings = {row["event_id"]: Standing(row["status"], row["run"], row["claim"]) for row in rows}
        for event_id in events:
            topic = self._topics.get(event_id)
            if topic is not None and topic.standing != standings.get(event_id):
                topic.standing = standings.get(event_id)
                self._wake([event_id])

    def _wake(self, events: Iterable[UUID]) -> None:
        for event_id in events:
            for news in self._topics[event_id].listeners if event_id in self._topics else ():
                news.set()


async def standing(pool: Pool, event_id: UUID, tenant: str, timeout_s: float) -> tuple[Standing, int] | None:
    """How an event of the tenant stands, and the last claim of its earlier runs."""
    row = await pool.fetchrow(SQL["standing"], event_id, tenant, timeout=timeout_s)
    return None if row is None else (Standing(row["status"], row["run"], row["claim"]), row["before"])


async def messages(
    listeners: Listeners, pool: Pool, event_id: UUID, state: tuple[Standing, int], last: int | None
) -> AsyncGenerator[bytes, None]:
    """Server-sent events until the event or the process ends, read by `pool`; the client has read up to seq `last`."""
    cursor = ResumeCursor(*live_log.parse_seq(last)) if last else ResumeCursor()
    reader = FeedReader(listeners.redis, live_log.log_of(listeners.names, event_id), pool, event_id, cursor)
    with listeners.listening(event_id, state[0]) as (topic, news):
        if not last and state[1]:
            async for message in reader.skip_runs(state[1]):
                yield message
        while not listeners.stopping and topic.standing is not None:
            news.clear()
            stands = topic.standing
            async for message in reader.catch_up(stands):
                yield message
            if stands.ended:
                return
            try:
                async with asyncio.timeout(COMMENT_S):
                    await news.wait()
            except TimeoutError:
                yield COMMENT


def _ids(message: bytes) -> Iterator[UUID]:
    return (UUID(bytes=message[at : at + 16]) for at in range(0, len(message) - 15, 16))
