"""Budgets: what a call may cost is reserved before it is made, and what it did not cost is free again afterwards."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Final
from uuid import UUID

import sql
from service.core.errors import Outage, text_of
from service.core.servers import POSTGRES_ERRORS, Pool
from workers.engine.claim import Claimed
from workers.models.call_log import BudgetSpent, DaySpent

DRAW_TIMEOUT_S: Final = 10.0
TIDY_EVERY_S: Final = 2.0
SPREAD_S: Final = 60.0
# Calls under way end within seconds, and nobody says when: who waits for what they hold asks again at least so often.
HELD_WAIT_MAX_S: Final = 10.0
SQL: Final = sql.queries("budgets")

Draw = Callable[[float], Awaitable[bool]]
PutBack = Callable[[float], Awaitable[object]]


class Budget:
    """What may be spent, and the calls under way that have reserved of it."""

    def __init__(self, left_usd: float) -> None:
        self.left_usd = left_usd
        self._under_way = 0
        self._used = False
        self._changed: Final = asyncio.Event()
        self._alone: Final = asyncio.Lock()

    async def reserve(self, usd: float, draw: Draw) -> bool:
        """Take `usd`, wait for calls under way to give theirs back, or `draw` more; False where nothing helps."""
        async with self._alone:
            while self.left_usd < usd and not await draw(usd):
                if not self._under_way:
                    return False
                self._changed.clear()
                await self._changed.wait()
            self.left_usd -= usd
            self._under_way += 1
            self._used = True
            return True

    async def tidy(self, put_back: PutBack) -> None:
        """What is left goes back where nothing was reserved since this was last asked."""
        async with self._alone:
            if not self._used and not self._under_way and self.left_usd > 0:
                left_usd, self.left_usd = self.left_usd, 0.0
                await put_back(left_usd)
            self._used = False

    def refund(self, back_usd: float) -> None:
        self.left_usd += back_usd
        self._under_way -= 1
        self._changed.set()


async def no_more(usd: float) -> bool:
    return False


async def reserve_own(budget: Budget, limit_usd: float, usd: float) -> None:
    """Of the event's own budget. Raises BudgetSpent."""
    if not await budget.reserve(usd, no_more):
        spent = f"${limit_usd - budget.left_usd:.4f} of its budget of ${limit_usd:g} are spent"
        raise BudgetSpent(f"{spent}, and the next call may cost ${usd:.4f}. Raise budget_usd of its pipeline.")


class DayBudgets:
    """What this worker has drawn of the budgets of days, by (worker, tenant, day)."""

    def __init__(self, pool: Pool, limit_usd: float) -> None:
        self._pool: Final = pool
        self._limit_usd: Final = limit_usd
        self._budgets: Final[dict[tuple[UUID, str, date], Budget]] = {}

    async def reserve(self, claimed: Claimed, now: datetime, usd: float) -> Budget:
        """Of the day of `now`, which is on the clock of Postgres.

        Raises DaySpent where the day's budget does not allow it, Outage where others hold what is left of it.
        """
        day = now.date()
        key = (claimed.worker, claimed.tenant, day)
        budget = self._budgets.get(key) or await self._begin(key)
        if await budget.reserve(usd, lambda usd: self._draw(budget, key, usd)):
            return budget
        spent_usd = await self._ask(SQL["settled"], claimed.tenant, day)
        state = f"${spent_usd:.4f} of ${self._limit_usd:g} for {day} are spent and this call may cost ${usd:.4f}"
        if spent_usd + usd <= self._limit_usd:
            cause = f"the day's budget: {state}; calls under way hold the rest"
            raise Outage(cause, 1.0 + random.random(), wait_max_s=HELD_WAIT_MAX_S)
        tomorrow = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
        wait_s = (tomorrow - now).total_seconds() + random.uniform(0, SPREAD_S)
        raise DaySpent(f"the day's budget: {state}", wait_s)

    async def run(self) -> None:
        """Gives back, now and then, what nobody here needs: others may."""
        while True:
            await asyncio.sleep(TIDY_EVERY_S)
            for key, budget in list(self._budgets.items()):
                await budget.tidy(partial(self._ask, SQL["put_back"], *key))

    async def give_back(self) -> None:
        """At the end of the worker: what was drawn and not used is the others'."""
        workers = {worker for worker, _, _ in self._budgets}
        self._budgets.clear()
        if workers:
            await self._ask(SQL["give_back"], list(workers))

    async def _begin(self, key: tuple[UUID, str, date]) -> Budget:
        await self._ask(SQL["begin_day"], *key[1:])
        for other in [other for other in self._budgets if other[0] != key[0] or other[2] < key[2]]:
            del self._budgets[other]
        return self._budgets.setdefault(key, Budget(0.0))

    async def _draw(self, budget: Budget, key: tuple[UUID, str, date], usd: float) -> bool:
        drawn_usd = await self._ask(SQL["draw"], *key, self._limit_usd, usd - budget.left_usd)
        budget.left_usd += drawn_usd
        return drawn_usd > 0

    async def _ask(self, statement: str, *arguments: object) -> float:
        try:
            async with asyncio.timeout(DRAW_TIMEOUT_S):
                return await self._pool.fetchval(statement, *arguments) or 0.0
        except POSTGRES_ERRORS as error:
            raise Outage(f"Postgres did not answer what the budget is: {text_of(error)}") from error
