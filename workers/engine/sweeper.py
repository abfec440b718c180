"""Upkeep, once a second: notify of what is due and was not notified, free what was lost, notice a Redis that forgot."""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import ResponseError

import sql
from schemas.identity import uuid7
from service.core import streams
from service.core.errors import text_of
from service.core.metrics import Meters
from service.core.redis_errors import reason_of
from service.core.redis_owner import RedisOwner
from service.core.servers import POSTGRES_ERRORS, REDIS_ERRORS, Connection, connect
from service.core.settings import Settings
from workers.engine.claim import Claimed
from workers.engine.dead_letter_relay import relay_dead_letters
from workers.engine.executor import Executor
from workers.engine.lease import Lease
from workers.engine.resume import Resumer

TURN_S: Final = 1.0
LAG: Final = timedelta(seconds=5)
STREAM_MAX: Final = 50_000
DUTY: Final = timedelta(seconds=5)
CRASHES_MAX: Final = 5
LETTERS: Final = 100
EPOCH_TURNS: Final = 2
ANSWER_S: Final = 1.0  # of a Redis that is slower nothing is asked in this turn
UNKNOWN_EVERY_S: Final = 10.0
SQL: Final = {**sql.queries("sweeper"), **sql.queries("settle"), **sql.queries("lease")}
LOCK: Final = sql.queries("store")["lock_mailboxes"]

log = logging.getLogger("callboard.sweeper")


class Sweeper:
    """One connection, one turn a second; `turn()` is also what the alarm clock calls."""

    def __init__(
        self,
        settings: Settings,
        redis: Redis,
        lease: Lease,
        executor: Executor,
        resumer: Resumer,
        owner: RedisOwner,
        meters: Meters | None = None,
    ) -> None:
        self._meters: Final = meters or Meters()
        self._owner: Final = owner
        self._names: Final = streams.names_of(settings)
        self._settings: Final = settings
        self._redis: Final = redis
        self._lease: Final = lease
        self._executor: Final = executor
        self._resumer: Final = resumer
        self._alone: Final = asyncio.Lock()
        self._connection: Connection | None = None
        self._unknown_at = 0.0
        self._turns = 0
        self._trouble = ""

    async def run(self) -> None:
        """Turn until cancelled; an error ends it, and the supervisor starts it again."""
        try:
            while True:
                await self.turn()
                await asyncio.sleep(TURN_S)
        finally:
            if self._connection is not None:
                with suppress(*POSTGRES_ERRORS):
                    self._connection.terminate()
                self._connection = None

    async def turn(self) -> int:
        """Everything that is due, once; returns how many events were notified."""
        async with self._alone:
            if self._connection is None or self._connection.is_closed():
                self._connection = await connect(self._settings, "sweeper")
            return await self._turn(self._connection)

    async def _turn(self, connection: Connection) -> int:
        """First what needs only Postgres: with Redis away, claims that are not ours end all the same, and in time."""
        await self._move_deadlines(connection)
        row: Any = await connection.fetchrow(SQL["due"])
        await self._end_what_is_not_ours(connection)
        rescued = await self._rescue(connection) if row["expired"] else []
        if row["expired"] or row["unsettled"]:
            lost = await connection.fetchval(SQL["close_lost"])
            if lost:
                log.warning("%d calls of dead workers are booked as unknown", lost)
        overdue = row["overdue"] and self._lease.steady  # after an outage, each worker first says whom it kept waiting
        if overdue:
            log.warning(
                "runs went past their deadline and are taken away: %s", await connection.execute(SQL["overdue"])
            )
        if row["without_seq"]:
            await self._draw_mailbox_seqs(connection)
        await self._resumer.turn(connection)
        unknown, struck = await self._unknown(connection)
        heads = await self._bury(connection) if row["expired"] or overdue or struck else []
        try:
            return await self._tell(connection, [*rescued, *unknown, *heads], row)
        except REDIS_ERRORS as error:
            if streams.wrong_type(error):
                await self._mend()
            elif self._trouble != text_of(error):
                log.warning("Redis is %s, what is due waits for it: %s", reason_of(error), text_of(error))
            self._trouble = text_of(error)
            return 0

    async def _tell(self, connection: Connection, front: Sequence[UUID], row: Any) -> int:
        """What needs Redis too, if there is any of it or it is time to look for its mark."""
        self._turns += 1
        due = row["unnotified"] or row["stale"] or row["without_seq"]
        if self._turns % EPOCH_TURNS and not (front or due or row["unrelayed"]):
            return 0
        forgot = await self._forgot(connection, row["epoch"])
        await streams.notify(self._redis, front, self._names.front)
        notified = await self._sweep(connection) if due or forgot else 0
        if row["unrelayed"] and await self._on_duty(connection, "dead_stream"):
            await relay_dead_letters(self._settings, connection, self._redis)
        self._trouble = ""
        return notified

    async def _mend(self) -> None:
        with suppress(*REDIS_ERRORS):
            await streams.mend(self._redis, self._names)

    async def _forgot(self, connection: Connection, seen: str) -> bool:
        """Whether Redis has lost its memory since somebody last looked; then it is noted when."""
        async with asyncio.timeout(ANSWER_S):
            mark = await self._owner.look(self._redis)
        if mark != seen:
            await connection.execute(SQL["new_epoch"], seen, mark)
        return mark != seen

    async def _end_what_is_not_ours(self, connection: Connection) -> None:
        """Cancelled, or taken over while we stood still."""
        running = _pairs(self._executor.claims())
        if running[0]:
            for row in await connection.fetch(SQL["not_held"], *running, self._lease.worker):
                self._executor.drop(row["event_id"], row["claim"])

    async def _rescue(self, connection: Connection) -> list[UUID]:
        if not self._lease.steady:
            return []
        freed = await connection.fetch(SQL["rescue"])
        if freed:
            log.warning("%d events of a dead worker go on elsewhere", len(freed))
            self._meters.add("callboard_claims_lost_total", (), len(freed))
        return [row["event_id"] for row in freed if row["consecutive_losses"] == 1]

    async def _bury(self, connection: Connection) -> list[UUID]:
        letters = [uuid7() for _ in range(LETTERS)]
        rows = await connection.fetch(SQL["bury"], CRASHES_MAX, letters)
        for row in rows:
            log.error("event %s is dead: %s", row["event_id"], row["reason"])
            self._meters.add("callboard_events_ended_total", (row["type"], "dead"))
        keyed = {(row["tenant"], row["partition_key"]) for row in rows if row["partition_key"] is not None}
        return await heads(connection, keyed)

    async def _unknown(self, connection: Connection) -> tuple[list[UUID], bool]:
        """The events that are handed back, and whether one of them came back unsettled."""
        if not self._lease.held or time.monotonic() - self._unknown_at < UNKNOWN_EVERY_S:
            return [], False
        self._unknown_at = time.monotonic()
        unsettled = self._executor.unsettled
        held = (self._lease.worker, *_pairs(self._executor.holds()), unsettled.excused)
        rows = await connection.fetch(SQL["unknown_claims"], *held, *unsettled.reasons())
        for row in rows:
            unsettled.forget(row["event_id"], row["claim"])
            self._meters.add("callboard_claims_unsettled_total", ("unsettled" if row["is_crash"] else "reply_lost",))
        if struck := [str(row["event_id"]) for row in rows if row["is_crash"]]:
            log.error("%d runs came back without an outcome, the first of event %s", len(struck), struck[0])
        return [row["event_id"] for row in rows], bool(struck)

    async def _move_deadlines(self, connection: Connection) -> None:
        """What we let wait is not late by that."""
        if late := self._executor.late():
            ids, claims = (
                [running.claimed.event_id for running, _ in late],
                [running.claimed.claim for running, _ in late],
            )
            await connection.execute(
                SQL["move_deadlines"], ids, claims, [timedelta(seconds=late_s) for _, late_s in late]
            )
            for running, late_s in late:
                running.moved_s += late_s

    async def _draw_mailbox_seqs(self, connection: Connection) -> None:
        keys = await connection.fetch(SQL["without_seq"])
        if keys:
            async with connection.transaction():
                both = ([row["tenant"] for row in keys], [row["partition_key"] for row in keys])
                await connection.execute(LOCK, *both)
                await connection.execute(SQL["draw_mailbox_seqs"], *both)

    async def _on_duty(self, connection: Connection, duty: str) -> bool:
        """Only under an id that is registered: one that is drawn anew later would not be known as the holder's."""
        if not self._lease.held:
            return False
        return await connection.fetchrow(SQL["hold_duty"], duty, self._lease.worker, DUTY) is not None

    async def _sweep(self, connection: Connection) -> int:
        if not await self._on_duty(connection, "sweep"):
            return 0
        room = STREAM_MAX - int(await self._redis.xlen(self._names.work))
        if room <= 0:
            return 0
        read_to = [await self._read_to(connection, name) - LAG for name in (self._names.work, self._names.front)]
        ids: list[UUID] = [row["event_id"] for row in await connection.fetch(SQL["sweep"], *read_to, room)]
        await streams.notify(self._redis, ids, self._names.work)
        return len(ids)

    async def _read_to(self, connection: Connection, name: str) -> datetime:
        """The moment up to which the group has read the stream, on Postgres' clock; now, if nothing is undelivered."""
        seconds, micros = await self._redis.time()
        now: datetime = await connection.fetchval(SQL["now"])
        with suppress(ResponseError):  # no such stream: nothing is undelivered
            for group in await self._redis.xinfo_groups(name):
                last = group["last-delivered-id"].decode()
                if group["name"].decode() == streams.GROUP and await self._redis.xrange(name, f"({last}", count=1):
                    redis_now = datetime.fromtimestamp(int(seconds), UTC) + timedelta(microseconds=int(micros))
                    read = datetime.fromtimestamp(int(last.split("-")[0]) / 1000, UTC)
                    return now - (redis_now - read)
        return now


def _pairs(claims: Sequence[Claimed]) -> tuple[list[UUID], list[int]]:
    """Events with their claims: an event may be in hand twice, under a claim that is lost and a new one."""
    return [claimed.event_id for claimed in claims], [claimed.claim for claimed in claims]


async def heads(connection: Connection, keys: set[tuple[str, str]]) -> list[UUID]:
    """Who is first now in these mailboxes and can run."""
    if not keys:
        return []
    columns: Sequence[Any] = tuple(zip(*keys, strict=True))
    return [row["event_id"] for row in await connection.fetch(SQL["heads"], *columns)]
