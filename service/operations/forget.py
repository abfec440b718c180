"""Forget: deletes every trace of a key, a subject or a source, piece by piece, and then counts what is left.

Children are deleted before their parents: after a stop in between, the next request still finds what is left.
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
from service.core.servers import ACQUIRE_TIMEOUT_S, Pool
from service.operations.forget_redis import Forgotten, RedisTraces, Target, mentions

T = TypeVar("T")

BATCH: Final = 100  # events of one transaction
PAGE: Final = 5_000  # rows that one statement reads
LETTERS: Final = 16
EVENTS_MAX: Final = 100_000  # of one request, which holds their ids until it has counted again
ROUNDS: Final = 3
LET_GO: Final = timedelta(seconds=3)  # by then a worker has heard that a run was stopped, without Redis too
WAIT_S: Final = 150.0  # a call that is under way lasts 120 s at most
PAUSE_S: Final = 0.2
NO_ID: Final = UUID(int=0)
SQL: Final = {**sql.queries("forget"), **sql.queries("store"), **sql.queries("settle"), **sql.queries("operate")}


class InHand(Exception):
    """A worker runs an event of the target: the caller has to try again when that has ended."""


class _Traces(Struct):
    counts: Counter[str] = msgspec.field(default_factory=Counter)
    ids: set[UUID] = msgspec.field(default_factory=set)
    actors: set[str] = msgspec.field(default_factory=set)
    more: bool = False

    @property
    def nonzero(self) -> dict[str, int]:
        return {name: count for name, count in self.counts.items() if count}


class Forgetter:
    """Acts for one tenant's `actor`. `notify` tells of an event that is first in its mailbox now."""

    def __init__(self, pool: Pool, redis: RedisTraces, notify: Callable[[UUID], None], tenant: str, actor: str) -> None:
        self._pool: Final = pool
        self._redis: Final = redis
        self._notify: Final = notify
        self._tenant: Final = tenant
        self._actor: Final = actor

    async def forget(self, target: Target) -> Forgotten:
        """Raises InHand where a worker goes on with an event of the target, Unavailable while Redis is away."""
        if target.dry_run:
            traces = await self._count(target)
            return Forgotten(traces.nonzero, {}, traces.more)
        op_id = uuid4()
        await self._fetch(SQL["begin_forget"], op_id, self._tenant, self._actor, target.by[0])
        traces, left = _Traces(), Counter[str]()
        for _ in range(ROUNDS):
            await self._remove(target, traces)
            left = await self._left(target, traces)
            if traces.more or not left:
                break
        counts = {"by": target.by[0], "found": traces.nonzero, "left": dict(left)}
        await self._fetch(SQL["end_forget"], op_id, json.encode(counts).decode())
        return Forgotten(traces.nonzero, dict(left), traces.more)

    async def _remove(self, target: Target, traces: _Traces) -> None:
        await self._streams(target, traces, delete=True)
        async for ids in self._pages(target, traces):
            await self._remove_tree(ids, target, traces)
        for chunk in _chunks(traces.ids):  # what a run that was stopped may have written since
            traces.counts.update(await self._row(SQL["scrub"], chunk))
            traces.counts["live"] += await self._redis.logs(chunk, delete=True)
        if target.key is not None:
            await self._remove_states([target.key], traces)
        async for rows in self._documents(target):
            which = [[row["collection"] for row in rows], [row["id"] for row in rows]]
            traces.counts["documents"] += (await self._row(SQL["delete_documents"], self._tenant, *which))["count"]
        async for letters in self._letters(target):
            traces.counts["dead_letters"] += (await self._row(SQL["delete_letters"], letters))["count"]
        await self._streams(target, traces, delete=True)

    async def _left(self, target: Target, traces: _Traces) -> Counter[str]:
        counts = (await self._count(target, traces.ids)).counts
        for chunk in _chunks(traces.ids):
            counts.update(await self._row(SQL["there"], chunk))
            counts["live"] += await self._redis.logs(chunk, delete=False)
        return +counts

    async def _count(self, target: Target, known: Iterable[UUID] = ()) -> _Traces:
        """The traces of the target; of events that are `known` to be its own, entries in streams too."""
        traces = _Traces(ids=set(known))
        async for ids in self._pages(target, traces):
            level = ids
            while level:
                for chunk in _chunks(level):
                    traces.counts.update(await self._row(SQL["there"], chunk))
                    traces.counts["live"] += await self._redis.logs(chunk, delete=False)
                    traces.actors.update(row["partition_key"] for row in await self._fetch(SQL["actors"], chunk))
                traces.ids.update(level)
                level = await self._children(level, target, EVENTS_MAX, fitting=False)
        traces.actors.update([target.key] if target.key is not None else [])
        for keys in _chunks(traces.actors):
            traces.counts["states"] += (await self._row(SQL["count_states"], self._tenant, keys))["count"]
            derived = await self._fetch(SQL["count_derived"], self._tenant, keys)
            traces.counts["journal"] += sum(row["count"] for row in derived if row["event_id"] not in traces.ids)
        async for rows in self._documents(target):
            traces.counts["documents"] += sum(row["event_id"] not in traces.ids for row in rows)
        async for letters in self._letters(target):
            traces.counts["dead_letters"] += len(letters)
        await self._streams(target, traces, delete=False)
        return traces

    async def _pages(self, target: Target, traces: _Traces) -> AsyncIterator[list[UUID]]:
        """The events that fit, up to BATCH at a time; the caller may delete a page before it takes the next one."""
        after, rows_max = NO_ID, BATCH if target.key is not None else PAGE
        filters = (self._tenant, target.key, target.subject, target.source)
        while True:
            (page,) = await self._fetch(SQL["page"], *filters, after, rows_max, BATCH)
            if page["ids"]:
                if len(traces.ids) >= EVENTS_MAX:
                    traces.more = True
                    return
                yield page["ids"]
            if not page["more"] and len(page["ids"]) < BATCH:
                return
            after = page["ids"][-1] if len(page["ids"]) == BATCH else page["last"]

    async def _children(self, ids: Sequence[UUID], target: Target, most: int, *, fitting: bool) -> list[UUID]:
        filters = (target.key, target.subject, target.source, not fitting, most)
        return [row["event_id"] for row in await self._fetch(SQL["children"], ids, *filters)]

    async def _remove_tree(self, ids: list[UUID], target: Target, traces: _Traces) -> None:
        """From the leaves on: stops open events before it looks for their children, so that no child is added later."""
        while True:
            level, is_root = ids, True
            await self._stop(level, traces)
            while children := await self._children(level, target, BATCH, fitting=True):
                level, is_root = children, False
                await self._stop(level, traces)
            await self._remove_events(level, traces)
            if is_root:
                return

    async def _remove_events(self, ids: Sequence[UUID], traces: _Traces) -> None:
        left, deadline = set(ids), asyncio.get_running_loop().time() + WAIT_S
        while True:
            left = await self._remove_at_rest(list(left), traces)
            if not left:
                return
            if asyncio.get_running_loop().time() > deadline:
                raise InHand(f"a worker has {len(left)} of the events in hand still, {min(left)} among them: try again")
            await asyncio.sleep(PAUSE_S)
            await self._stop(list(left), traces)  # somebody may have replayed one

    async def _remove_at_rest(self, ids: Sequence[UUID], traces: _Traces) -> set[UUID]:
        """Deletes the events that no worker holds; returns the others."""
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection, connection.transaction():
            keys = [row["partition_key"] for row in await connection.fetch(SQL["mailboxes_of"], ids, self._tenant)]
            await connection.execute(SQL["lock_mailboxes"], [self._tenant] * len(keys), keys)
            rows = await connection.fetch(SQL["at_rest"], ids, self._tenant, LET_GO)
            resting = [row["event_id"] for row in rows if row["rests"]]
            actors = [row["partition_key"] for row in await connection.fetch(SQL["actors"], resting)]
            states = await self._without_states(connection, actors)
            counts = dict((await connection.fetch(SQL["scrub"], resting))[0])
        traces.counts.update(counts)
        traces.counts["states"] += states
        await self._remove_derived(actors, traces)
        traces.ids.update(resting)
        traces.counts["live"] += await self._redis.logs(resting, delete=True)
        return {row["event_id"] for row in rows if not row["rests"]}

    async def _remove_states(self, actors: Sequence[str], traces: _Traces) -> None:
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection, connection.transaction():
            await connection.execute(SQL["lock_mailboxes"], [self._tenant] * len(actors), actors)
            traces.counts["states"] += await self._without_states(connection, actors)

    async def _remove_derived(self, actors: Sequence[str], traces: _Traces) -> None:
        """Deletes other events' journal entries of steps that read such an actor's memory, and of later steps."""
        gone = PAGE if actors else 0
        while gone == PAGE:
            gone = (await self._row(SQL["delete_derived"], self._tenant, actors, PAGE))["count"]
            traces.counts["journal"] += gone

    async def _without_states(self, connection: Any, actors: Sequence[str]) -> int:
        """Deletes the memories, whose mailboxes are locked. An event that runs would write back what it has read."""
        for head in await connection.fetch(SQL["heads_of"], self._tenant, actors) if actors else ():
            if head["status"] == "running":
                raise InHand(
                    f"event {head['event_id']} runs for an actor whose memory is to be forgotten: wait for its end or "
                    "cancel it, then try again"
                )
        deleted: int = await connection.fetchval(SQL["delete_states"], self._tenant, actors)
        return deleted

    async def _stop(self, ids: Sequence[UUID], traces: _Traces) -> None:
        rows = await self._fetch(SQL["cancel"], ids, self._tenant, None)
        traces.counts["work"] += len(rows)
        keys = list({row["partition_key"] for row in rows if row["partition_key"] is not None})
        for head in await self._fetch(SQL["heads"], [self._tenant] * len(keys), keys) if keys else ():
            self._notify(head["event_id"])
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

    async def _streams(self, target: Target, traces: _Traces, *, delete: bool) -> None:
        traces.counts.update(await self._redis.streams(target, traces.ids, delete=delete))

    async def _row(self, statement: str, *arguments: Any) -> dict[str, int]:
        return dict((await self._fetch(statement, *arguments))[0])

    async def _fetch(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            return list(await connection.fetch(statement, *arguments))


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while chunk := list(islice(rest, BATCH)):
        yield chunk
