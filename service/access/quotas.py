"""Quotas of keys: how many events a key may send in a time, and how many of them may be open.

A rate holds over all APIs together: its bucket is in Redis. An API takes as many events as wait, and as many more as
it is likely to need, at most those of LEASE_S; its next query gives the unused ones back. It queries Redis again while
half of them is left, so that no event of a busy key waits for a round trip before the rate is reached. While Redis is
away each API keeps to its part of the rate, by the number of APIs that was last known.
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

from service.access.keys import SQL, Key
from service.access.rates import Bucket, Rate
from service.core.errors import OverLimit
from service.core.servers import REDIS_ERRORS, Pool
from service.core.streams import Names

LEASE_S: Final = 0.1
AHEAD_S: Final = 2 * LEASE_S  # a lease is for the events of so long: some of them come before Redis has answered
DEADLINE_S: Final = 0.1  # of a query to Redis; an event waits for two at most
ALONE_S: Final = 1.0  # after a failure Redis is not queried for so long
ALIVE_S: Final = 15.0
BEAT_S: Final = 5.0
COUNTED_S: Final = 1.0
COUNT_TIMEOUT_S: Final = 3.0
DRY_S: Final = 0.01  # the bucket has to have room for the events of so long before Redis is queried again
HELD_MAX: Final = 10_000  # keys with quotas that are held in memory
SCRIPT: Final = Path(__file__).with_name("quota.lua").read_text(encoding="utf-8")

T = TypeVar("T")


class Lease:
    """One API's part of one key's rate. It may use `left` until `ends_at`, and queries for more once `low` are left."""

    def __init__(self, rate: Rate) -> None:
        self.rate: Final = rate
        self.left = self.low = 0
        self.ends_at = self.queried_at = -math.inf
        self.used = 0  # since the last query
        self.waiting = 0
        self.query: asyncio.Task[float] | None = None
        self.shared: Final = Bucket()  # as Redis has it
        self.own = Bucket()  # the events that this API let in
        self.unshared = Bucket()  # those of them that Redis does not know of

    def usable(self, now: float) -> int:
        return self.left if now < self.ends_at else 0

    def is_spent(self, now: float, wanted: int) -> bool:
        """Whether Redis has to be queried: the lease has too little left, and Redis may have more."""
        usable = self.usable(now)
        return usable < wanted and (self.left > usable or self._may_be_more(now))

    def is_low(self, now: float) -> bool:
        """Whether Redis should be queried already, so that no event has to wait for it."""
        half_over = self.left <= self.low or now >= self.ends_at - LEASE_S / 2
        return half_over and self.query is None and self._may_be_more(now)

    def _may_be_more(self, now: float) -> bool:
        return self.shared.room(now, self.rate) >= max(1, int(DRY_S / self.rate.apart_s))


class Counted:
    """How many events of a key were open at the last count, plus those that came in since; holds until `ends_at`."""

    def __init__(self) -> None:
        self.count = 0
        self.ends_at = -math.inf
        self.alone: Final = asyncio.Lock()


class Quotas:
    """The rates and open events of the keys that send events to this API."""

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

    async def admit(self, key: Key | None, wanted: int) -> tuple[int, OverLimit | None]:
        """How many of the `wanted` events may come in, the first ones; and the refusal of the others.

        Raises POSTGRES_ERRORS where Postgres, which counts the open events, does not answer.
        """
        granted, over, counted = wanted, None, None
        if key is not None and key.max_open is not None:
            counted = await self._count_of(key.prefix, key.max_open)
            granted = min(wanted, max(0, key.max_open - counted.count))
            over = _too_many_open(key.prefix, key.max_open) if granted < wanted else None
            counted.count += granted
        rate = None if key is None else key.rate
        if key is not None and rate is not None and granted and not self._take_at_once(key.prefix, rate, granted):
            fitting, wait_s = await self._take(key.prefix, rate, granted)
            if fitting < granted:
                over = _too_fast(key.prefix, rate, granted - fitting, wait_s)
                if counted is not None:
                    counted.count -= granted - fitting
            granted = fitting
        return granted, over

    async def _count_of(self, prefix: str, max_open: int) -> Counted:
        counted = self._counted.get(prefix) or _put(self._counted, prefix, Counted())
        if counted.ends_at <= self._clock():
            async with asyncio.timeout(COUNT_TIMEOUT_S), counted.alone:
                if counted.ends_at <= self._clock():
                    async with self._pool.acquire() as connection:
                        counted.count = await connection.fetchval(SQL["open_events"], prefix, max_open)
                    counted.ends_at = self._clock() + COUNTED_S
        return counted

    def _take_at_once(self, prefix: str, rate: Rate, wanted: int) -> bool:
        """Whether the lease had all of the `wanted` events, and gave them. A low one is renewed in the background."""
        lease, now = self._leases.get(prefix), self._clock()
        if lease is None or lease.rate != rate or lease.usable(now) < wanted:
            return False
        lease.left -= wanted
        lease.used += wanted
        lease.own.add(now, rate, wanted, self.apis)
        if now >= self._alone_until and lease.is_low(now):
            lease.query = asyncio.create_task(self._query_in_time(lease, prefix))
        return True

    async def _take(self, prefix: str, rate: Rate, wanted: int) -> tuple[int, float]:
        """How many of the `wanted` events fit the rate, and in how many seconds the others would."""
        lease = self._leases.get(prefix)
        if lease is None or lease.rate != rate:  # a new rate begins with a new lease
            lease = _put(self._leases, prefix, Lease(rate))
        now, tries = self._clock(), 2  # an event that came during the query of others may need one more query
        while tries and lease.is_spent(now, wanted) and now >= self._alone_until:
            tries -= 1
            lease.waiting += wanted
            try:
                if lease.query is None:
                    lease.query = asyncio.create_task(self._query_in_time(lease, prefix))
                now = await asyncio.shield(lease.query)
            finally:
                lease.waiting -= wanted
        granted = min(wanted, lease.usable(now))
        lease.left -= granted
        lease.used += granted
        bucket, parts = lease.shared, 1
        if granted < wanted and (now < self._alone_until or lease.is_spent(now, wanted - granted)):
            # Redis did not answer in time: that is no ground for a refusal.
            bucket, parts = lease.own, self.apis
            more = min(wanted - granted, bucket.room(now, rate, parts))
            lease.unshared.add(now, rate, more, parts)
            granted += more
        lease.own.add(now, rate, granted, self.apis)
        return granted, bucket.wait_s(now, rate, wanted - granted, parts)

    async def _query_in_time(self, lease: Lease, prefix: str) -> float:
        """One query for all events that wait: they go on together, and share a commit. Returns the time of its end."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self._query(lease, prefix)
        except REDIS_ERRORS:
            now = self._clock()
            self._alone_until = now + ALONE_S
            return now
        finally:
            lease.query = None

    async def _query(self, lease: Lease, prefix: str) -> float:
        """Returns the time of the answer. Raises REDIS_ERRORS; events that Redis granted then are lost to the key."""
        now, rate = self._clock(), lease.rate
        expected = lease.used * AHEAD_S / max(now - lease.queried_at, LEASE_S / 50)
        wanted = lease.waiting + min(int(expected), int(LEASE_S / rate.apart_s))
        # The script takes back what is left and grants it anew, so it may be used meanwhile, unless other events wait.
        back, lease.left = lease.left, 0 if lease.waiting else min(lease.left, wanted)
        lease.used, lease.queried_at = 0, now
        unknown = lease.unshared.held(now, rate, self.apis)
        numbers = (rate.count, rate.period_s * 1_000_000, wanted, unknown - back)
        granted, drains_us = await self._call(f"{self._names.quota}:{prefix}", *numbers)
        now = self._clock()
        lease.unshared = Bucket()
        lease.left, lease.low, lease.ends_at = max(0, granted - lease.used), granted // 2, now + LEASE_S
        lease.shared.drained_at = now + drains_us / 1_000_000
        return now

    async def _call(self, bucket: str | None = None, *numbers: int) -> tuple[int, int]:
        keys = [self._names.apis, *([bucket] if bucket else [])]
        answer: Any = await self._script(keys=keys, args=[self._name, int(ALIVE_S * 1000), *numbers])
        self.apis, granted, drains_us = answer
        return granted, drains_us


def _put(entries: dict[str, T], prefix: str, value: T) -> T:
    entries.pop(prefix, None)
    if len(entries) >= HELD_MAX:
        del entries[next(iter(entries))]
    entries[prefix] = value
    return value


def _too_fast(prefix: str, rate: Rate, events: int, wait_s: float) -> OverLimit:
    after_s, events = max(1, math.ceil(wait_s)), min(events, rate.count)
    fitting = "the next one fits" if events == 1 else f"the next {events} fit"
    message = f"the key {prefix} may send {rate.in_words()} over all APIs (its --rate): {fitting} in {after_s} s"
    return OverLimit("rate", message, after_s)


def _too_many_open(prefix: str, max_open: int) -> OverLimit:
    message = (
        f"the key {prefix} may have {max_open} events open (its --max-open), and has: others fit once some have ended"
    )
    return OverLimit("open", message)
