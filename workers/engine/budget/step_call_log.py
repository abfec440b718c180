"""The ledger as one question of a step sees it: what is recalled, reserved, opened and closed."""

from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from prompts import Prompt
from service.core.errors import Unavailable
from service.core.metrics import Waited
from service.core.time_limit import our_wait
from workers.engine.budget.budgets import Budget, reserve_own
from workers.engine.budget.ledger import Ledger, Row, opening
from workers.engine.claim import Claimed
from workers.engine.run_feed import RunFeed
from workers.kit.memory import Facts, Guard, Stale, Step
from workers.models.call_log import Source
from workers.models.client import Call, CallLog

T = TypeVar("T")


class Payer(Struct, frozen=True):
    """Who pays: the claim, its event's own budget (`budget`, of `limit_usd`), and the day's."""

    claimed: Claimed
    facts: Facts
    ledger: Ledger
    budget: Budget
    limit_usd: float | None
    feed: RunFeed

    def call_log(self, step: str, guard: Guard) -> CallLog:
        return StepCallLog(self, step, guard)


def call_logs(
    claimed: Claimed, facts: Facts, ledger: Ledger, limit_usd: float | None, feed: RunFeed
) -> Callable[[str, Guard], CallLog]:
    """The call logs of one run, by step."""
    budget = Budget((limit_usd or 0.0) - facts.spent_usd)
    return Payer(claimed, facts, ledger, budget, limit_usd, feed).call_log


class StepCallLog:
    """One for each question, which may take several calls, one after the other."""

    def __init__(self, payer: Payer, step: str, guard: Guard) -> None:
        self._payer: Final = payer
        self._step: Final = step
        self._guard: Final = guard
        self._row: Row = ()
        self._usd = 0.0
        self._budgets: list[Budget] = []

    @property
    def asker(self) -> object:
        return self._payer

    def recall(self, question_hash: str) -> tuple[int, str | None]:
        facts = self._payer.facts
        ordinal = facts.ordinals[self._step, question_hash] = facts.ordinals.get((self._step, question_hash), 0) + 1
        return ordinal, facts.replies.get((self._step, question_hash, ordinal))

    def recalled(self, prompt: Prompt | Source) -> None:
        version = f"{prompt.name}@{prompt.version}"
        self._payer.facts.steps.append(Step(self._step, self._payer.facts.now(), 0.0, "recalled", prompt=version))

    async def shield(self, call: Coroutine[Any, Any, T]) -> T:
        return await self._payer.ledger.shield(call)

    async def open(self, call: Call) -> None:
        payer, self._usd, back_usd, opened = self._payer, call.cost_usd, call.cost_usd, False
        call = replace(call, at=payer.facts.now())  # the day that it is booked on is the same for all workers
        try:
            with our_wait():
                await self._reserve(call)
            await self._guard()
            held = payer.ledger.day_budgets is not None and call.cost_usd > 0
            self._row = opening(payer.claimed, self._step, call, held=held)
            back_usd = 0.0  # from here on only Postgres knows whether it counts
            opened = await payer.ledger.open(self._row, _unsent(call, "Postgres did not note it in time"))
        finally:
            if not opened:
                self._refund(back_usd)
        if not opened:
            raise Stale(str(payer.claimed.event_id))
        await self._still_held(call)

    async def _still_held(self, call: Call) -> None:
        """A worker that was frozen while its call was noted does not make it any more."""
        held = False
        try:
            await self._guard()
            held = True
        finally:
            if not held:
                await self.close(_unsent(call, "the run had ended"))

    def text_delta(self, call: Call, text: str) -> None:
        self._payer.feed.text_delta(self._step, call, text)

    async def close(self, call: Call) -> None:
        if call.streamed:
            self._payer.feed.ended(call)
        answered = self._payer.feed.answered(self._step, call) if call.streamed and call.outcome == "ok" else None
        is_stored = False
        try:
            is_stored = await self._payer.ledger.close(self._row, call, answered.n if answered else None)
        except Unavailable:
            self._refund(0.0)
            raise
        finally:
            if answered is not None:
                self._payer.feed.stored(answered, is_stored=is_stored)
        self._refund(self._usd - call.cost_usd)
        if call.outcome == "ok" and not is_stored:
            raise Stale(str(self._payer.claimed.event_id))

    async def _reserve(self, call: Call) -> None:
        payer = self._payer
        if payer.ledger.prompt_versions is not None:
            await payer.ledger.prompt_versions.use(call)
        if payer.limit_usd is not None:
            with Waited(payer.ledger.meters, "callboard_budget_wait_seconds", ("event",)):
                await reserve_own(payer.budget, payer.limit_usd, call.cost_usd)
            self._budgets.append(payer.budget)
        if payer.ledger.day_budgets is not None and call.cost_usd > 0:
            with Waited(payer.ledger.meters, "callboard_budget_wait_seconds", ("day",)):
                budget = await payer.ledger.day_budgets.reserve(payer.claimed, call.at, call.cost_usd)
            self._budgets.append(budget)

    def _refund(self, back_usd: float) -> None:
        for budget in self._budgets:
            budget.refund(back_usd)
        self._budgets = []


def _unsent(call: Call, why: str) -> Call:
    return replace(call, cost_usd=0.0, outcome="connection", cause=f"not sent: {why}")
