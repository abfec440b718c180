"""Who follows events, in one process: one subscription and one poll of Postgres for all of them.

A doorbell (or the poll, where Redis is away) wakes a follower, which reads on in the log where it stopped: nothing is
queued for it, so that one that reads slowly gets larger pieces less often.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

import msgspec
from msgspec import Raw, Struct, json
from redis.asyncio import Redis

import sql
from schemas.outcome import ENDED
from service import live
from service.errors import Unavailable
from service.live import Place, Said, Stepped
from service.resources import POSTGRES_ERRORS, REDIS_ERRORS, Pool
from service.story import START, Reply, Story
from service.stream import Names

POLL_S: Final = 1.0
LISTEN_S: Final = 2.0
COMMENT_S: Final = 15.0
COMMENT: Final = b": still here\n\n"
SQL: Final = sql.queries("follow")

log = logging.getLogger("callboard.follow")


class Standing(Struct, frozen=True):
    status: str
    run: int
    claim: int

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class Topic(Struct, eq=False):
    """An event that somebody follows; its standing is None once it is forgotten."""

    standing: Standing | None
    followers: set[asyncio.Event] = set()


class Followers:
    def __init__(self, redis: Redis, names: Names, pool: Pool) -> None:
        self.redis: Final = redis
        self.names: Final = names
        self.pool: Final = pool
        self.leaving = False
        self._topics: Final[dict[UUID, Topic]] = {}

    @contextmanager
    def follow(self, event_id: UUID, standing: Standing) -> Iterator[tuple[Topic, asyncio.Event]]:
        """Raises Unavailable where this process stops."""
        self.admit()
        topic = self._topics.setdefault(event_id, Topic(standing))
        news = asyncio.Event()
        topic.followers.add(news)
        try:
            yield topic, news
        finally:
            topic.followers.discard(news)
            if not topic.followers:
                self._topics.pop(event_id, None)

    def admit(self) -> None:
        if self.leaving:
            raise Unavailable("it stops")

    def leave(self) -> None:
        """Ends every stream: its client comes again, to another process."""
        self.leaving = True
        self._wake(self._topics)

    async def listen(self) -> None:
        async with self.redis.pubsub() as channel:
            await channel.subscribe(self.names.news, self.names.moved)
            self._wake(self._topics)  # nobody rang while nobody listened
            while True:
                message = await channel.get_message(ignore_subscribe_messages=True, timeout=LISTEN_S)
                if message is None or not self._topics:
                    continue
                rung = [each for each in _ids(message["data"]) if each in self._topics]
                if message["channel"] == self.names.moved.encode():
                    await self._look(rung)
                self._wake(rung)

    async def poll(self) -> None:
        """See what nobody rings for, until cancelled."""
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
        found = {row["event_id"]: Standing(row["status"], row["run"], row["claim"]) for row in rows}
        for each in events:
            topic = self._topics.get(each)
            if topic is not None and topic.standing != found.get(each):
                topic.standing = found.get(each)
                self._wake([each])

    def _wake(self, events: Iterable[UUID]) -> None:
        for each in events:
            for news in self._topics[each].followers if each in self._topics else ():
                news.set()


class Follower:
    """Reads the log, and from Postgres what lies in its holes."""

    def __init__(self, redis: Redis, name: str, pool: Pool, event_id: UUID, story: Story) -> None:
        self._redis: Final = redis
        self._name: Final = name
        self._pool: Final = pool
        self._event_id: Final = event_id
        self._story: Final = story

    async def skip_runs(self, before: int) -> list[bytes]:
        """Of earlier runs a new client is told only the replies that this one may get back."""
        replies = await self._replies(START, (before + 1, 0))
        told = [message for place, reply in replies for message in self._story.stored(place, reply)]
        self._story.skip_to((before, live.N_MAX))
        return told

    async def catch_up(self, stands: Standing) -> AsyncIterator[bytes]:
        story = self._story
        async for message in self._read_log(stands.run):
            yield message
        if stands.ended:
            for message in await self._fill((stands.claim + 1, 0), stands.run, whole=True):
                yield message
            row = await self._pool.fetchrow(SQL["result"], self._event_id)
            result = Raw(row["result"].encode()) if row and row["result"] else None
            for message in story.end(stands.claim, stands.status, result):
                yield message
            return
        if stands.claim > story.at[0]:
            for message in await self._fill((stands.claim, 0), stands.run):
                yield message
        for message in story.status(stands.claim, stands.status):
            yield message

    async def _read_log(self, run: int) -> AsyncIterator[bytes]:
        story = self._story
        after = story.at
        while True:
            try:
                entries = await live.read_log(self._redis, self._name, after)
            except (*REDIS_ERRORS, msgspec.DecodeError) as error:
                log.warning("the log of event %s can't be read: %s", self._event_id, error)
                entries = []
            for place, said in entries:
                for message in await self._entry(place, said, run):
                    yield message
                after = place
            if len(entries) < live.PAGE:
                story.resume()
                return

    async def _entry(self, place: Place, said: Said, run: int) -> list[bytes]:
        story = self._story
        if place > story.seen:
            story.resume()
        told = await self._fill(place, run) if story.hole(place) else []
        if story.lacks(place, said):
            for there, reply in await self._replies((place[0], place[1] - 1), (place[0], place[1] + 1)):
                told += story.stored(there, reply)
        return [*told, *story.entry(place, said)]

    async def _fill(self, before: Place, run: int, *, whole: bool = False) -> list[bytes]:
        """What is stored behind here and before `before`; at the end from the beginning, for what was passed over."""
        story = self._story
        after = START if whole else max(story.at, story.seen)
        steps, replies = await self._steps(run, max(after, story.seen), before), await self._replies(after, before)
        facts: list[tuple[Place, Stepped | Reply]] = sorted([*steps, *replies], key=lambda found: found[0])
        return [message for place, fact in facts for message in story.stored(place, fact)]

    async def _replies(self, after: Place, before: Place) -> list[tuple[Place, Reply]]:
        rows = await self._pool.fetch(SQL["replies"], self._event_id, *after, *before)
        found = {}
        for row in rows:  # of a call that was answered twice, the last
            step, call, made = row["step"], live.call_name(row["asked"], row["ordinal"]), live.made_name(row["call_id"])
            found[step, call] = (row["claim"], row["n"]), Reply(step, call, made, row["reply"])
        return list(found.values())

    async def _steps(self, run: int, after: Place, before: Place) -> list[tuple[Place, Stepped]]:
        rows = await self._pool.fetch(SQL["steps"], self._event_id, run, after[0], before[0])
        steps = [((row["claim"], each.get("n", 0)), each) for row in rows for each in json.decode(row["steps"])]
        wanted = [(place, each) for place, each in steps if after < place < before and place[1]]
        return [(place, Stepped(each["step"], each["state"], each["ms"])) for place, each in wanted]


async def standing(pool: Pool, event_id: UUID, tenant: str, timeout_s: float) -> tuple[Standing, int] | None:
    """How an event of the tenant stands, and the last claim of its earlier runs."""
    row = await pool.fetchrow(SQL["standing"], event_id, tenant, timeout=timeout_s)
    return None if row is None else (Standing(row["status"], row["run"], row["claim"]), row["before"])


async def told(
    followers: Followers, pool: Pool, event_id: UUID, state: tuple[Standing, int], last: int | None
) -> AsyncGenerator[bytes, None]:
    """Server-sent events until the event or the process ends, read by `pool`; the client has read up to seq `last`."""
    story = Story(*live.parted(last)) if last else Story()
    follower = Follower(followers.redis, live.log_of(followers.names, event_id), pool, event_id, story)
    with followers.follow(event_id, state[0]) as (topic, news):
        if not last and state[1]:
            for message in await follower.skip_runs(state[1]):
                yield message
        while not followers.leaving and topic.standing is not None:
            news.clear()
            stands = topic.standing
            async for message in follower.catch_up(stands):
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
