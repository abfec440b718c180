"""Turns: a few things that callers share and hold for a moment, connections to Postgres above all.

Where something is held for long it is refused instead (`Shares` in service/http/body_allowance.py): here a short wait
is better.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, cast

from service.core.errors import TooMany, Unavailable
from service.core.metrics import Meters
from service.core.servers import ACQUIRE_TIMEOUT_S, Pool
from service.core.settings import Settings

LEFT: Final = 5  # one in so many is left for the next caller
OWN: Final = 2  # connections of a pool that no caller has: for readiness, and for the poll of all listeners
LISTS_MAX: Final = 3  # what is slow in a list is Postgres and the loop, and more at once only keep others from both
STILL_S: Final = 4.5  # where nobody has given a turn back for so long, Postgres is at fault and not the caller
WAITING_MAX: Final = 500  # of one caller, a quarter of what the API has connections for


class Turns:
    """At most `most` at a time. A caller may have all that is free, but for one part in LEFT, which is the next one's.

    Who has least comes next, so while another waits nobody gets more than half. `name` is what a refusal is counted by.
    """

    def __init__(self, name: str, most: int, wait_s: float, meters: Meters) -> None:
        self._name: Final = name
        self._most: Final = most
        self._alone_most: Final = max(1, most - -(-most // LEFT))
        self._wait_s: Final = wait_s
        self._meters: Final = meters
        self._held: Final[dict[str, int]] = {}
        self._waiting: Final[dict[str, deque[asyncio.Future[None]]]] = {}
        self._given_back_at = 0.0

    @asynccontextmanager
    async def turn(self, caller: str) -> AsyncIterator[None]:
        """Raises TooMany where this caller has its share, else Unavailable, when no turn has come in time; Unavailable,
        too, where in all that time nobody's turn has ended: that is no fault of the caller's.
        """
        turn, begun_at = asyncio.get_running_loop().create_future(), asyncio.get_running_loop().time()
        waiting = self._waiting.setdefault(caller, deque())
        if len(waiting) >= WAITING_MAX:
            raise self._refusal(caller)
        waiting.append(turn)
        self._next()
        try:
            async with asyncio.timeout(self._wait_s):
                await turn
        except (TimeoutError, asyncio.CancelledError) as error:
            if turn.cancelled():
                self._leave(caller, turn)
            else:
                self._give_back(caller)
            if isinstance(error, TimeoutError):
                raise self._refusal(caller, max(begun_at, self._given_back_at)) from error
            raise
        try:
            yield
        finally:
            self._give_back(caller)

    def _next(self) -> None:
        while sum(self._held.values()) < self._most:
            able = [caller for caller in self._waiting if self._held.get(caller, 0) < self._alone_most]
            if not able:
                return
            caller = min(able, key=lambda caller: self._held.get(caller, 0))  # of several the one that waits longest
            turn = self._waiting[caller][0]
            self._leave(caller, turn)
            if not turn.cancelled():  # whoever waited for it does not run before the loop's next round
                self._held[caller] = self._held.get(caller, 0) + 1
                turn.set_result(None)

    def _leave(self, caller: str, turn: asyncio.Future[None]) -> None:
        """This turn is waited for no more; what else the caller waits for goes behind the others'."""
        waiting = self._waiting.pop(caller, deque())
        with suppress(ValueError):  # it was left already
            waiting.remove(turn)
        if waiting:
            self._waiting[caller] = waiting

    def _give_back(self, caller: str) -> None:
        self._given_back_at = asyncio.get_running_loop().time()
        self._held[caller] -= 1
        if not self._held[caller]:
            del self._held[caller]
        self._next()

    def _refusal(self, caller: str, still_since: float | None = None) -> Unavailable:
        if still_since is not None and asyncio.get_running_loop().time() - still_since >= STILL_S:
            self._meters.add("callboard_refused_total", (self._name, "all"))
            return Unavailable(f"none of the {self._name} under way has ended for {STILL_S:g} s")
        mine, callers = self._held.get(caller, 0), len({*self._held, *self._waiting})
        is_its_own = mine >= min(self._alone_most, self._most // max(callers, 1) or 1)
        self._meters.add("callboard_refused_total", (self._name, "caller" if is_its_own else "all"))
        if is_its_own:
            return TooMany(f"more of your {self._name} are under way than one caller may have")
        return Unavailable(f"as many {self._name} as there may be are under way")


class Lent:
    """A pool as one caller has it: what it takes of it is counted."""

    def __init__(self, pool: Pool, turns: Turns, caller: str) -> None:
        self._pool: Final = pool
        self._turns: Final = turns
        self._caller: Final = caller

    @asynccontextmanager
    async def acquire(self, *, timeout: float = ACQUIRE_TIMEOUT_S) -> AsyncIterator[Any]:  # noqa: ASYNC109 - asyncpg's
        async with self._turns.turn(self._caller), self._pool.acquire(timeout=timeout) as connection:
            yield connection

    async def fetch(self, statement: str, *arguments: Any, **options: Any) -> Any:
        async with self.acquire() as connection:
            return await connection.fetch(statement, *arguments, **options)

    async def fetchrow(self, statement: str, *arguments: Any, **options: Any) -> Any:
        async with self.acquire() as connection:
            return await connection.fetchrow(statement, *arguments, **options)

    async def fetchval(self, statement: str, *arguments: Any, **options: Any) -> Any:
        async with self.acquire() as connection:
            return await connection.fetchval(statement, *arguments, **options)

    async def execute(self, statement: str, *arguments: Any, **options: Any) -> Any:
        async with self.acquire() as connection:
            return await connection.execute(statement, *arguments, **options)


def querying(settings: Settings, meters: Meters) -> Turns:
    """The turns of an API's callers at its pool."""
    return Turns("queries", max(1, settings.pool - OWN), ACQUIRE_TIMEOUT_S, meters)


def listing(meters: Meters) -> Turns:
    """The turns of an API's callers at its lists, from the query until the answer is composed."""
    return Turns("lists", LISTS_MAX, ACQUIRE_TIMEOUT_S, meters)


def lent(pool: Pool, turns: Turns, caller: str) -> Pool:
    """It does what is done with pools here: acquire, fetch, fetchrow, fetchval, execute."""
    return cast(Pool, Lent(pool, turns, caller))
