"""Quotas of keys: how many events a key may send in a time, and how many of them may be open.

A rate holds over all APIs together: its bucket is in Redis. An API takes what waits, and what it is likely to need
within LEASE_S, so that few events cost a round trip; what it has not used by then goes back when it asks again. While
Redis is away each API keeps to its part of the rate, by the number of APIs that was last known.
"""

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeVar
from uuid import uuid4

from redis.asyncio import Redis

from service.errors import OverLimit
from service.keys import SQL, Key
from service.rates import Bucket, Rate
from service.resources import REDIS_ERRORS, Pool
from service.stream import Names

LEASE_S: Final = 0.05
DEADLINE_S: Final = 0.1  # of a question to Redis; an event waits for two at most
ALONE_S: Final = 1.0  # after a failure Redis is not asked again for so long
ALIVE_S: Final = 15.0
BEAT_S: Final = 5.0
COUNTED_S: Final = 1.0
COUNT_TIMEOUT_S: Final = 3.0
DRY_S: Final = 0.01  # what comes in so long has to be there before Redis is asked again
HELD_MAX: Final = 10_000  # keys with quotas that are kept in mind
SCRIPT: Final = Path(__file__).with_name("quota.lua").read_text(encoding="utf-8")

T = TypeVar("T")


class Lease:
    """What one API has of one key's rate. `left` may be used until `ends_at`."""

    def __init__(self, rate: Rate) -> None:
        self.rate: Final = rate
        self.left = 0
        self.ends_at = self.asked_at = -math.inf
        self.used = 0  # since it was asked for
        self.waiting = 0
        self.asking: asyncio.Task[float] | None = None
        self.shared: Final = Bucket()  # as Redis told it
        self.own = Bucket()  # what this API let in
        self.unshared = Bucket()  # what it let in that Redis does not know of

    def usable(self, now: float) -> int:
        return self.left if now < self.ends_at else 0

    def is_spent(self, now: float, asked: int) -> bool:
        """Whether Redis has to be asked: there is too little left, and there may be more."""
        enough = max(1, int(DRY_S / self.rate.apart_s))
        may_be_more = self.left > self.usable(now) or self.shared.room(now, self.rate) >= enough
        return self.usable(now) < asked and may_be_more


class Counted:
    """How many events of a key were open when they were counted, and what was let in since; holds until `ends_at`."""

    def __init__(self) -> None:
        self.count = 0
        self.ends_at = -math.inf
        self.alone: Final = asyncio.Lock()


class Quotas:
    """What the keys that send events at this API may send."""

    def __init__(self, names: Names, redis: Redis, pool: Pool, clock: Callable[[], float] = monotonic) -> None:
        self.apis = 1
        self._names: Final = names
        self._pool: Final = pool
        self._name: Final = uuid4().hex
        self._script: Final = redis.register_script(SCRIPT)
        self._clock: Final = clock
        self._alone_until = -math.inf
        self._leases: Final[dict[str, Lease]] = {}
        self._counted: Final[dict[str, Counted]] = {}

    async def run(self) -> None:
        """Say that this API is alive, and learn how many are, until cancelled."""
        while True:
            with suppress(*REDIS_ERRORS):  # then there are as many as there were
                async with asyncio.timeout(BEAT_S):
                    await self._call()
            await asyncio.sleep(BEAT_S)

    async def admit(self, key: Key | None, asked: int) -> tuple[int, OverLimit | None]:
        """How many of `asked` events may come in, the first ones; and what the others are told.

        Raises POSTGRES_ERRORS where Postgres, which knows what is open, does not say it.
        """
        granted, over, counted = asked, None, None
        if key is not None and key.max_open is not None:
            counted = await self._count_of(key.prefix, key.max_open)
            granted = min(asked, max(0, key.max_open - counted.count))
            over = _too_many_open(key.prefix, key.max_open) if granted < asked else None
            counted.count += granted
        if key is not None and key.rate is not None and granted:
            fitting, wait_s = await self._take(key.prefix, key.rate, granted)
            if fitting < granted:
                over = _too_fast(key.prefix, key.rate, granted - fitting, wait_s)
                if counted is not None:
                    counted.count -= granted - fitting
            granted = fitting
        return granted, over

    async def _count_of(self, prefix: str, max_open: int) -> Counted:
        counted = self._counted.get(prefix) or _kept(self._counted, prefix, Counted())
        if counted.ends_at <= self._clock():
            async with asyncio.timeout(COUNT_TIMEOUT_S), counted.alone:
                if counted.ends_at <= self._clock():
                    async with self._pool.acquire() as connection:
                        counted.count = await connection.fetchval(SQL["open_events"], prefix, max_open)
                    counted.ends_at = self._clock() + COUNTED_S
        return counted

    async def _take(self, prefix: str, rate: Rate, asked: int) -> tuple[int, float]:
        """How many fit the rate, and in how many seconds the others would."""
        lease = self._leases.get(prefix)
        if lease is None or lease.rate != rate:  # the rate was changed: what was known counts for nothing
            lease = _kept(self._leases, prefix, Lease(rate))
        now, tries = self._clock(), 2  # who came while Redis was being asked for others may have to ask once more
        while tries and lease.is_spent(now, asked) and now >= self._alone_until:
            tries -= 1
            lease.waiting += asked
            try:
                if lease.asking is None:
                    lease.asking = asyncio.create_task(self._ask_in_time(lease, prefix))
                now = await asyncio.shield(lease.asking)
            finally:
                lease.waiting -= asked
        granted = min(asked, lease.usable(now))
        lease.left -= granted
        lease.used += granted
        bucket, parts = lease.shared, 1
        if granted < asked and (now < self._alone_until or lease.is_spent(now, asked - granted)):
            # Redis did not say in time that there is no more, which is no ground for a refusal.
            bucket, parts = lease.own, self.apis
            more = min(asked - granted, bucket.room(now, rate, parts))
            lease.unshared.add(now, rate, more, parts)
            granted += more
        lease.own.add(now, rate, granted, self.apis)
        return granted, bucket.wait_s(now, rate, asked - granted, parts)

    async def _ask_in_time(self, lease: Lease, prefix: str) -> float:
        """For all who wait: they go on together, and share a commit. Returns the time of the answer, or of its lack."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self._ask(lease, prefix)
        except REDIS_ERRORS:
            now = self._clock()
            self._alone_until = now + ALONE_S
            return now
        finally:
            lease.asking = None

    async def _ask(self, lease: Lease, prefix: str) -> float:
        """The time of the answer. Raises REDIS_ERRORS; what Redis may have granted then is lost to the key."""
        now, rate = self._clock(), lease.rate
        expected = lease.used * LEASE_S / max(now - lease.asked_at, LEASE_S / 50)
        wanted = lease.waiting + min(int(expected), int(LEASE_S / rate.apart_s))
        back, lease.left, lease.used, lease.asked_at = lease.left, 0, 0, now
        unknown = lease.unshared.held(now, rate, self.apis)
        numbers = (rate.count, rate.period_s * 1_000_000, wanted, unknown - back)
        granted, drains_us = await self._call(f"{self._names.quota}:{prefix}", *numbers)
        now = self._clock()
        lease.unshared = Bucket()
        lease.left, lease.ends_at = granted, now + LEASE_S
        lease.shared.drained_at = now + drains_us / 1_000_000
        return now

    async def _call(self, bucket: str | None = None, *numbers: int) -> tuple[int, int]:
        keys = [self._names.apis, *([bucket] if bucket else [])]
        told: Any = await self._script(keys=keys, args=[self._name, int(ALIVE_S * 1000), *numbers])
        self.apis, granted, drains_us = told
        return granted, drains_us


def _kept(held: dict[str, T], prefix: str, value: T) -> T:
    held.pop(prefix, None)
    if len(held) >= HELD_MAX:
        del held[next(iter(held))]
    held[prefix] = value
    return value


def _too_fast(prefix: str, rate: Rate, events: int, wait_s: float) -> OverLimit:
    after_s, events = max(1, math.ceil(wait_s)), min(events, rate.count)
    fitting = "the next one fits" if events == 1 else f"the next {events} fit"
    told = f"the key {prefix} may send {rate.in_words()} over all APIs (its --rate): {fitting} in {after_s} s"
    return OverLimit("rate", told, after_s)


def _too_many_open(prefix: str, max_open: int) -> OverLimit:
    told = (
        f"the key {prefix} may have {max_open} events open (its --max-open), and has: others fit once some have ended"
    )
    return OverLimit("open", told)
