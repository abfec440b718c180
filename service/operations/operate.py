"""What operators do to events: replay, cancel, and the dead letters."""

import logging
from collections.abc import Sequence
from typing import Annotated, Any, Final
from uuid import UUID

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from msgspec import Meta, Struct
from redis.asyncio import Redis

import sql
from schemas.envelope import SOURCE, Moment
from schemas.outcome import Reason
from schemas.text import BadEvent
from service.core.servers import ACQUIRE_TIMEOUT_S, REDIS_ERRORS, Pool
from service.intake.intake import Conflict, Intake

BATCH: Final = 200
BYTES_MAX: Final = 4 << 20  # of entries that are taken again together
SQL: Final = {**sql.queries("operate"), **sql.queries("store"), **sql.queries("settle")}


log = logging.getLogger("callboard.operate")


class Letters(Struct, frozen=True, forbid_unknown_fields=True):
    """Which dead letters: every condition given must hold."""

    type: str | None = None
    reason: Reason | None = None
    since: Moment | None = None
    until: Moment | None = None
    ids: Annotated[list[UUID], Meta(max_length=10_000)] | None = None

    @property
    def everything(self) -> bool:
        return (self.type, self.reason, self.since, self.until, self.ids) == (None,) * 5


class Operated(Struct, frozen=True):
    matched: int
    done: int


class UnknownStep(Exception):
    """A replay is to begin from a step that the last run has not."""


class StateMoved(Exception):
    """A replay can't begin with the actor's states as they were before the event; it would do `steps` again."""

    def __init__(self, event_id: UUID, steps: Sequence[str]) -> None:
        redone = f"do again, and pay for again: {', '.join(steps)}" if steps else "add to them a second time"
        super().__init__(
            f"event {event_id} has changed its actor's states and is not the last of its key: others changed them, "
            f"or wait, or they were not kept. A replay would begin with the states as they are now, and {redone}"
        )


class Operator:
    """Acts for one tenant's operator, `actor`, who goes on record."""

    def __init__(self, pool: Pool, redis: Redis, channel: str, intake: Intake, tenant: str, actor: str) -> None:
        self._pool: Final = pool
        self._redis: Final = redis
        self._channel: Final = channel
        self._intake: Final = intake
        self._tenant: Final = tenant
        self._actor: Final = actor

    async def replay(self, event_id: UUID, step: str | None = None, *, again: bool = False) -> int | None:
        """Start a new run of an ended event: its number, or None where the event is not ended.

        What the last run remembers is carried over, from `step` on nothing. Where the event is the last of its key, the
        actor's states are set back to what they were before it. Raises UnknownStep where there is no such step,
        StateMoved where a success is not the last and `again` does not say that it may add to the states once more.
        """
        return (await self._replay([event_id], step, again=again)).get(event_id)

    async def cancel(self, event_id: UUID) -> bool:
        """Whether there was anything to cancel. The worker that runs it is told; nothing it does counts any more."""
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            row = await connection.fetchrow(SQL["cancel"], [event_id], self._tenant, self._actor)
            if row is None:
                return False
            if row["partition_key"] is not None:
                for head in await connection.fetch(SQL["heads"], [row["tenant"]], [row["partition_key"]]):
                    self._intake.notifier.notify(head["event_id"])
        if row["status"] == "running":
            try:
                await self._redis.publish(self._channel, event_id.bytes)
            except REDIS_ERRORS as error:
                log.warning("Redis is away, the worker finds out by itself that %s is cancelled: %s", event_id, error)
        return True

    async def letters(
        self, which: Letters, limit: int, bytes_max: int, before: int | None = None
    ) -> list[asyncpg.Record]:
        """Dead letters, newest first, below the number `before`; `among`: how many there are, counted up to `limit`."""
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            return list(await connection.fetch(SQL["dead_letters"], *self._filters(which), before, limit, bytes_max))

    async def replay_letters(self, which: Letters, *, dry_run: bool) -> Operated:
        """Replay the events of the letters that fit, in the order in which they died (that of each mailbox).

        Entries that never were events go through the door again.
        """
        return await self._in_batches(which, dry_run, self._replay_batch)

    async def discard_letters(self, which: Letters, *, dry_run: bool) -> Operated:
        """Forget the letters that fit; their events stay, `dead`."""
        return await self._in_batches(which, dry_run, self._discard_batch)

    async def _in_batches(self, which: Letters, dry_run: bool, act: Any) -> Operated:
        """In the order in which they died; what dies again meanwhile is not among them."""
        done = matched = behind = 0
        last: int | None = None
        while rows := await self._oldest(which, behind, last, 1 if dry_run else BATCH):
            matched = rows[0]["matched"] if last is None else matched
            if dry_run:
                break
            behind, last = rows[-1]["dead_no"], rows[0]["last"]
            done += await act(rows)
        return Operated(matched, done)

    async def _oldest(self, which: Letters, behind: int, last: int | None, limit: int) -> list[asyncpg.Record]:
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            return list(
                await connection.fetch(SQL["oldest_letters"], *self._filters(which), behind, last, limit, BYTES_MAX)
            )

    def _filters(self, which: Letters) -> tuple[Any, ...]:
        return (self._tenant, which.type, which.reason, which.since, which.until, which.ids)

    async def _replay_batch(self, rows: Sequence[asyncpg.Record]) -> int:
        events = [row["event_id"] for row in rows if row["event_id"] is not None]
        done = len(await self._replay(events)) if events else 0
        taken = [row["dead_id"] for row in rows if row["event_id"] is None and await self._take_again(row)]
        if taken:
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                await connection.execute(SQL["answered"], taken, self._tenant, self._actor)
        return done + len(taken)

    async def _take_again(self, row: asyncpg.Record) -> bool:
        """The letter's own id is the event's where it names none, so that twice is once."""
        try:
            body, own_id = row["event"].encode(), str(row["dead_id"])
            await self._intake.take(body, tenant=self._tenant, source=SOURCE, default_id=own_id, by=self._actor)
        except (BadEvent, Conflict):
            log.info("dead letter %s is no event still", row["dead_id"])
            return False
        return True

    async def _discard_batch(self, rows: Sequence[asyncpg.Record]) -> int:
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            ids = [row["dead_id"] for row in rows]
            return len(await connection.fetch(SQL["discard"], ids, self._tenant, self._actor))

    async def _replay(self, ids: Sequence[UUID], step: str | None = None, *, again: bool = True) -> dict[UUID, int]:
        """A replayed event draws a new place at the end of its mailbox, under the lock of that mailbox."""
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection, connection.transaction():
            await self._lock_mailboxes(connection, ids)
            began = await connection.fetchval(SQL["began"], ids[0], step, self._tenant) if step else None
            if step and began is None:
                raise UnknownStep(f'the last run has no step "{step}"')
            unmoved = [row["event_id"] for row in await connection.fetch(SQL["unmoved"], list(ids), self._tenant)]
            if not again and not unmoved:
                stale = await connection.fetchrow(SQL["stale_steps"], ids[0], self._tenant, began)
                if stale is not None:
                    raise StateMoved(ids[0], stale["steps"])
            rows = await connection.fetch(SQL["replay"], list(ids), self._tenant, self._actor, began, step, unmoved)
        for row in rows:
            self._intake.notifier.notify(row["event_id"])
        return {row["event_id"]: row["run"] for row in rows}

    async def _lock_mailboxes(self, connection: "PoolConnectionProxy[asyncpg.Record]", ids: Sequence[UUID]) -> None:
        keys = await connection.fetch(SQL["mailboxes_of"], list(ids), self._tenant)
        if keys:
            await connection.execute(
                SQL["lock_mailboxes"], [row["tenant"] for row in keys], [row["partition_key"] for row in keys]
            )
