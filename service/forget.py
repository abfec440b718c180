"""Forget: every trace of a key, a subject or a source goes, in pieces, and is looked for again afterwards.

Children go before what caused them: where it is cut off in between, what is left can still be reached.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import islice
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4

import asyncpg
import msgspec
from msgspec import Struct, json

import sql
from service.forget_redis import Forgotten, RedisTraces, Target, mentions
from service.resources import ACQUIRE_TIMEOUT_S, Pool

T = TypeVar("T")

BATCH: Final = 100  # events of one transaction
PAGE: Final = 5_000  # rows that one statement reads
LETTERS: Final = 16
EVENTS_MAX: Final = 100_000  # of one request: their ids are held until it has counted again
ROUNDS: Final = 3
LET_GO: Final = timedelta(seconds=3)  # by then a worker has heard that a run was stopped, without Redis too
WAIT_S: Final = 150.0  # a call that is under way lasts 120 s at most
PAUSE_S: Final = 0.2
NO_ID: Final = UUID(int=0)
SQL: Final = {**sql.queries("forget"), **sql.queries("store"), **sql.queries("engine"), **sql.queries("operate")}


class InHand(Exception):
    """Somebody has to end before it can go on."""


class _Found(Struct):
    counts: Counter[str] = msgspec.field(default_factory=Counter)
    ids: set[UUID] = msgspec.field(default_factory=set)
    actors: set[str] = msgspec.field(default_factory=set)
    more: bool = False

    @property
    def whole(self) -> dict[str, int]:
        return {name: count for name, count in self.counts.items() if count}


class Forgetter:
    """Acts for one tenant's `actor`. `ring` notifies of an event that is first in its mailbox now."""

    def __init__(self, pool: Pool, redis: RedisTraces, ring: Callable[[UUID], None], tenant: str, actor: str) -> None:
        self._pool: Final = pool
        self._redis: Final = redis
        self._ring: Final = ring
        self._tenant: Final = tenant
        self._actor: Final = actor

    async def forget(self, target: Target) -> Forgotten:
        """Raises InHand where a run that can't be stopped holds it up, Unavailable while Redis is away."""
        if target.dry_run:
            there = await self._count(target)
            return Forgotten(there.whole, {}, there.more)
        op_id = uuid4()
        await self._fetch(SQL["begin_forget"], op_id, self._tenant, self._actor, target.by[0])
        found, left = _Found(), Counter[str]()
        for _ in range(ROUNDS):
            await self._remove(target, found)
            left = await self._left(target, found)
            if found.more or not left:
                break
        counts = {"by": target.by[0], "found": found.whole, "left": dict(left)}
        await self._fetch(SQL["end_forget"], op_id, json.encode(counts).decode())
        return Forgotten(found.whole, dict(left), found.more)

    async def _remove(self, target: Target, found: _Found) -> None:
        await self._streams(target, found, delete=True)
        async for ids in self._pages(target, found):
            await self._remove_tree(ids, target, found)
        for chunk in _chunks(found.ids):  # what a run that was stopped may have written since
            found.counts.update(await self._row(SQL["scrub"], chunk))
            found.counts["live"] += await self._redis.logs(chunk, delete=True)
        if target.key is not None:
            await self._remove_states([target.key], found)
        async for rows in self._documents(target):
            which = [[row["collection"] for row in rows], [row["id"] for row in rows]]
            found.counts["documents"] += (await self._row(SQL["delete_documents"], self._tenant, *which))["count"]
        async for letters in self._letters(target):
            found.counts["dead_letters"] += (await self._row(SQL["delete_letters"], letters))["count"]
        await self._streams(target, found, delete=True)

    async def _left(self, target: Target, found: _Found) -> Counter[str]:
        there = (await self._count(target, found.ids)).counts
        for chunk in _chunks(found.ids):
            there.update(await self._row(SQL["there"], chunk))
            there["live"] += await self._redis.logs(chunk, delete=False)
        return +there

    async def _count(self, target: Target, known: Iterable[UUID] = ()) -> _Found:
        """What is there of the target; of events that are `known` to be its own, entries in streams too."""
        found = _Found(ids=set(known))
        async for ids in self._pages(target, found):
            level = ids
            while level:
                for chunk in _chunks(level):
                    found.counts.update(await self._row(SQL["there"], chunk))
                    found.counts["live"] += await self._redis.logs(chunk, delete=False)
                    found.actors.update(row["key"] for row in await self._fetch(SQL["actors"], chunk))
                found.ids.update(level)
                level = await self._children(level, target, EVENTS_MAX, fitting=False)
        found.actors.update([target.key] if target.key is not None else [])
        for keys in _chunks(found.actors):
            found.counts["states"] += (await self._row(SQL["count_states"], self._tenant, keys))["count"]
            derived = await self._fetch(SQL["count_derived"], self._tenant, keys)
            found.counts["journal"] += sum(row["count"] for row in derived if row["event_id"] not in found.ids)
        async for rows in self._documents(target):
            found.counts["documents"] += sum(row["event_id"] not in found.ids for row in rows)
        async for letters in self._letters(target):
            found.counts["dead_letters"] += len(letters)
        await self._streams(target, found, delete=False)
        return found

    async def _pages(self, target: Target, found: _Found) -> AsyncIterator[list[UUID]]:
        """The events that fit, up to BATCH at a time; those that were given may be gone when more are asked for."""
        after, rows_max = NO_ID, BATCH if target.key is not None else PAGE
        asked = (self._tenant, target.key, target.subject, target.source)
        while True:
            (page,) = await self._fetch(SQL["page"], *asked, after, rows_max, BATCH)
            if page["ids"]:
                if len(found.ids) >= EVENTS_MAX:
                    found.more = True
                    return
                yield page["ids"]
            if not page["more"] and len(page["ids"]) < BATCH:
                return
            after = page["ids"][-1] if len(page["ids"]) == BATCH else page["last"]

    async def _children(self, ids: Sequence[UUID], target: Target, most: int, *, fitting: bool) -> list[UUID]:
        asked = (target.key, target.subject, target.source, not fitting, most)
        return [row["event_id"] for row in await self._fetch(SQL["children"], ids, *asked)]

    async def _remove_tree(self, ids: list[UUID], target: Target, found: _Found) -> None:
        """From the leaves on: what is open is stopped before its children are looked for, so that none comes after."""
        while True:
            level, is_root = ids, True
            await self._stop(level, found)
            while children := await self._children(level, target, BATCH, fitting=True):
                level, is_root = children, False
                await self._stop(level, found)
            await self._remove_events(level, found)
            if is_root:
                return

    async def _remove_events(self, ids: Sequence[UUID], found: _Found) -> None:
        left, deadline = set(ids), asyncio.get_running_loop().time() + WAIT_S
        while True:
            left = await self._remove_at_rest(list(left), found)
            if not left:
                return
            if asyncio.get_running_loop().time() > deadline:
                raise InHand(f"a worker has {len(left)} of the events in hand still, {min(left)} among them: try again")
            await asyncio.sleep(PAUSE_S)
            await self._stop(list(left), found)  # somebody may have replayed one

    async def _remove_at_rest(self, ids: Sequence[UUID], found: _Found) -> set[UUID]:
        """Those that are not at rest yet, and stay."""
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection, connection.transaction():
            keys = [row["key"] for row in await connection.fetch(SQL["mailboxes_of"], ids, self._tenant)]
            await connection.execute(SQL["lock_mailboxes"], [self._tenant] * len(keys), keys)
            rows = await connection.fetch(SQL["at_rest"], ids, self._tenant, LET_GO)
            resting = [row["event_id"] for row in rows if row["rests"]]
            actors = [row["key"] for row in await connection.fetch(SQL["actors"], resting)]
            states = await self._without_states(connection, actors)
            counts = dict((await connection.fetch(SQL["scrub"], resting))[0])
        found.counts.update(counts)
        found.counts["states"] += states
        await self._remove_derived(actors, found)
        found.ids.update(resting)
        found.counts["live"] += await self._redis.logs(resting, delete=True)
        return {row["event_id"] for row in rows if not row["rests"]}

    async def _remove_states(self, actors: Sequence[str], found: _Found) -> None:
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection, connection.transaction():
            await connection.execute(SQL["lock_mailboxes"], [self._tenant] * len(actors), actors)
            found.counts["states"] += await self._without_states(connection, actors)

    async def _remove_derived(self, actors: Sequence[str], found: _Found) -> None:
        """What other events remember of steps that had such a memory in hand, and of those behind them."""
        gone = PAGE if actors else 0
        while gone == PAGE:
            gone = (await self._row(SQL["delete_derived"], self._tenant, actors, PAGE))["count"]
            found.counts["journal"] += gone

    async def _without_states(self, connection: Any, actors: Sequence[str]) -> int:
        """Nobody may have them in hand: he would write back what he has read. Their mailboxes are locked."""
        for head in await connection.fetch(SQL["heads_of"], self._tenant, actors) if actors else ():
            if head["status"] == "running":
                raise InHand(
                    f"event {head['event_id']} runs for an actor whose memory is to be forgotten: wait for its end or "
                    "cancel it, then try again"
                )
        deleted: int = await connection.fetchval(SQL["delete_states"], self._tenant, actors)
        return deleted

    async def _stop(self, ids: Sequence[UUID], found: _Found) -> None:
        rows = await self._fetch(SQL["cancel"], ids, self._tenant, None)
        found.counts["work"] += len(rows)
        keys = list({row["key"] for row in rows if row["key"] is not None})
        for head in await self._fetch(SQL["heads"], [self._tenant] * len(keys), keys) if keys else ():
            self._ring(head["event_id"])
        await self._redis.stop([row["event_id"] for row in rows if row["status"] == "running"])

    async def _documents(self, target: Target) -> AsyncIterator[list[asyncpg.Record]]:
        after = ("", "")
        while page := await self._fetch(
            SQL["document_page"], self._tenant, *after, target.attribute, target.text, PAGE
        ):
            after = (page[-1]["collection"], page[-1]["id"])
            if rows := [row for row in page if row["fits"]]:
                yield rows

    async def _letters(self, target: Target) -> AsyncIterator[list[UUID]]:
        after = 0
        while page := await self._fetch(SQL["letter_page"], self._tenant, after, LETTERS):
            after = page[-1]["dead_no"]
            if ids := [row["dead_id"] for row in page if mentions(row["event"], target)]:
                yield ids

    async def _streams(self, target: Target, found: _Found, *, delete: bool) -> None:
        found.counts.update(await self._redis.streams(target, found.ids, delete=delete))

    async def _row(self, statement: str, *arguments: Any) -> dict[str, int]:
        return dict((await self._fetch(statement, *arguments))[0])

    async def _fetch(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            return list(await connection.fetch(statement, *arguments))


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while chunk := list(islice(rest, BATCH)):
        yield chunk
