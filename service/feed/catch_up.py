"""Reads what one listener has not been sent yet: from the log, and from Postgres what the log lacks.

It reads in pages of a bounded number of bytes, and the next page once the client has taken this one: of an event with a
thousand long replies a listener holds one at a time.
"""

import logging
from collections import deque
from collections.abc import AsyncIterator
from typing import Final
from uuid import UUID

import msgspec
from msgspec import Raw, Struct, json
from redis.asyncio import Redis

import sql
from schemas.outcome import ENDED
from service.core.servers import REDIS_ERRORS, Pool
from service.feed import live_log
from service.feed.cursor import START, Reply, ResumeCursor
from service.feed.live_log import Entry, Position, Stepped

PAGE: Final = 100  # stored replies that are read at a time
PAGE_MAX: Final = 64 << 10  # bytes of them; the first one may have more
SQL: Final = sql.queries("catch_up")

log = logging.getLogger("callboard.follow")


class Standing(Struct, frozen=True):
    status: str
    run: int
    claim: int

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class FeedReader:
    def __init__(self, redis: Redis, name: str, pool: Pool, event_id: UUID, cursor: ResumeCursor) -> None:
        self._redis: Final = redis
        self._name: Final = name
        self._pool: Final = pool
        self._event_id: Final = event_id
        self._cursor: Final = cursor

    async def skip_runs(self, before: int) -> AsyncIterator[bytes]:
        """Of earlier runs a new client is sent only the replies that the present run may get back."""
        async for position, reply in self._replies(START, (before + 1, 0)):
            for message in self._cursor.stored(position, reply):
                yield message
        self._cursor.skip_to((before, live_log.N_MAX))

    async def catch_up(self, stands: Standing) -> AsyncIterator[bytes]:
        cursor = self._cursor
        async for message in self._read_log(stands.run):
            yield message
        if stands.ended:
            async for message in self._fill((stands.claim + 1, 0), stands.run, from_start=True):
                yield message
            row = await self._pool.fetchrow(SQL["result"], self._event_id)
            result = Raw(row["result"].encode()) if row and row["result"] else None
            for message in cursor.end(stands.claim, stands.status, result):
                yield message
            return
        if stands.claim > cursor.at[0]:
            async for message in self._fill((stands.claim, 0), stands.run):
                yield message
        for message in cursor.status(stands.claim, stands.status):
            yield message

    async def _read_log(self, run: int) -> AsyncIterator[bytes]:
        cursor = self._cursor
        after, more = cursor.at, True
        while more:
            try:
                entries, more = await live_log.read_log(self._redis, self._name, after)
            except (*REDIS_ERRORS, msgspec.DecodeError) as error:
                log.warning("the log of event %s can't be read: %s", self._event_id, error)
                entries, more = [], False
            for position, entry in entries:
                async for message in self._entry(position, entry, run):
                    yield message
                after = position
        cursor.resume()

    async def _entry(self, position: Position, entry: Entry, run: int) -> AsyncIterator[bytes]:
        cursor = self._cursor
        if position > cursor.seen:
            cursor.resume()
        if cursor.gap(position):
            async for message in self._fill(position, run):
                yield message
        if cursor.lacks_reply(position, entry):
            async for there, reply in self._replies((position[0], position[1] - 1), (position[0], position[1] + 1)):
                for message in cursor.stored(there, reply):
                    yield message
        for message in cursor.entry(position, entry):
            yield message

    async def _fill(self, before: Position, run: int, *, from_start: bool = False) -> AsyncIterator[bytes]:
        """What is stored behind here and before `before`; at the end from the beginning, for what was passed over."""
        after = START if from_start else max(self._cursor.at, self._cursor.seen)
        async for position, fact in self._facts(run, after, before):
            for message in self._cursor.stored(position, fact):
                yield message

    async def _facts(
        self, run: int, after: Position, before: Position
    ) -> AsyncIterator[tuple[Position, Stepped | Reply]]:
        """In order. All steps are read at once: they hold no payload."""
        steps = deque(await self._steps(run, max(after, self._cursor.seen), before))
        async for position, reply in self._replies(after, before):
            while steps and steps[0][0] < position:
                yield steps.popleft()
            yield position, reply
        for step in steps:
            yield step

    async def _replies(self, after: Position, before: Position) -> AsyncIterator[tuple[Position, Reply]]:
        """In order, a page at a time: the next one is read after the last reply of this one.

        Of a call that was answered twice the first reply is sent too, and the second takes it back.
        """
        more = True
        while more:
            rows = await self._pool.fetch(SQL["replies"], self._event_id, *after, *before, PAGE, PAGE_MAX)
            more = bool(rows) and (len(rows) < rows[0]["total"] or rows[0]["total"] == PAGE)
            for row in rows:
                after = (row["claim"], row["n"])
                call, short_id = (
                    live_log.call_name(row["question_hash"], row["ordinal"]),
                    live_log.short_id(row["call_id"]),
                )
                yield after, Reply(row["step"], call, short_id, row["reply"])

    async def _steps(self, run: int, after: Position, before: Position) -> list[tuple[Position, Stepped]]:
        rows = await self._pool.fetch(SQL["steps"], self._event_id, run, after[0], before[0])
        steps = [((row["claim"], step.get("n", 0)), step) for row in rows for step in json.decode(row["steps"])]
        wanted = sorted((step for step in steps if after < step[0] < before and step[0][1]), key=lambda step: step[0])
        return [(position, Stepped(step["step"], step["state"], step["ms"])) for position, step in wanted]
