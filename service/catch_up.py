"""What a follower reads: the log of its event, and from Postgres what lies in the holes of that."""

import logging
from collections.abc import AsyncIterator
from typing import Final
from uuid import UUID

import msgspec
from msgspec import Raw, Struct, json
from redis.asyncio import Redis

import sql
from service import live
from service.live import Place, Said, Stepped
from service.resources import REDIS_ERRORS, Pool
from service.story import START, Reply, Story

SQL: Final = sql.queries("follow")

log = logging.getLogger("callboard.follow")


class Standing(Struct, frozen=True):
    """What Postgres says of an event."""

    status: str
    run: int
    claim: int

    @property
    def ended(self) -> bool:
        return self.status in ("succeeded", "dead", "cancelled")


class Follower:
    """Reads the log, and from Postgres what lies in its holes."""

    def __init__(self, redis: Redis, pool: Pool, event_id: UUID, story: Story) -> None:
        self._redis: Final = redis
        self._pool: Final = pool
        self._event_id: Final = event_id
        self._story: Final = story

    async def skip_runs(self, before: int) -> AsyncIterator[bytes]:
        """Of earlier runs a new client is told only the replies that this one may get back."""
        for place, reply in await self._replies(START, (before + 1, 0)):
            for message in self._story.stored(place, reply):
                yield message
        self._story.skip_to((before, live.N_MAX))

    async def catch_up(self, stands: Standing) -> AsyncIterator[bytes]:
        story = self._story
        async for message in self._read_log(stands.run):
            yield message
        if stands.ended:
            async for message in self._fill((stands.claim + 1, 0), stands.run, whole=True):
                yield message
            row = await self._pool.fetchrow(SQL["result"], self._event_id)
            result = Raw(row["result"].encode()) if row and row["result"] else None
            for message in story.end(stands.claim, stands.status, result):
                yield message
            return
        if stands.claim > story.at[0]:
            async for message in self._fill((stands.claim, 0), stands.run):
                yield message
        for message in story.status(stands.claim, stands.status):
            yield message

    async def _read_log(self, run: int) -> AsyncIterator[bytes]:
        story = self._story
        after = story.at
        while True:
            try:
                entries = await live.read_log(self._redis, self._event_id, after)
            except (*REDIS_ERRORS, msgspec.DecodeError) as error:
                log.warning("the log of event %s can't be read: %s", self._event_id, error)
                entries = []
            for place, said in entries:
                async for message in self._entry(place, said, run):
                    yield message
                after = place
            if len(entries) < live.PAGE:
                story.resume()
                return

    async def _entry(self, place: Place, said: Said, run: int) -> AsyncIterator[bytes]:
        story = self._story
        if place > story.seen:
            story.resume()
        if story.hole(place):
            async for message in self._fill(place, run):
                yield message
        if story.lacks(place, said):
            for there, reply in await self._replies((place[0], place[1] - 1), (place[0], place[1] + 1)):
                for message in story.stored(there, reply):
                    yield message
        for message in story.entry(place, said):
            yield message

    async def _fill(self, before: Place, run: int, *, whole: bool = False) -> AsyncIterator[bytes]:
        """What is stored behind here and before `before`; at the end from the beginning, for what was passed over."""
        story = self._story
        after = START if whole else max(story.at, story.seen)
        steps, replies = await self._steps(run, max(after, story.seen), before), await self._replies(after, before)
        facts: list[tuple[Place, Stepped | Reply]] = [*steps, *replies]
        for place, fact in sorted(facts, key=lambda found: found[0]):
            for message in story.stored(place, fact):
                yield message

    async def _replies(self, after: Place, before: Place) -> list[tuple[Place, Reply]]:
        rows = await self._pool.fetch(SQL["replies"], self._event_id, *after, *before)
        found = {}
        for row in rows:  # of a call that was answered twice, the last
            step, call, made = row["step"], live.call_name(row["asked"], row["ordinal"]), live.made_name(row["call_id"])
            found[step, call] = (row["claim"], row["n"]), Reply(step, call, made, row["reply"])
        return list(found.values())

    async def _steps(self, run: int, after: Place, before: Place) -> list[tuple[Place, Stepped]]:
        rows = await self._pool.fetch(SQL["steps"], self._event_id, run, after[0], before[0])
        found = [((row["claim"], each.get("n", 0)), each) for row in rows for each in json.decode(row["steps"])]
        return [
            (place, Stepped(each["step"], each["state"], each["ms"]))
            for place, each in found
            if after < place < before and place[1]
        ]
