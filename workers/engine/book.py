"""The ledger as one question of a step sees it: what is recalled, reserved, opened and closed."""

from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from prompts import Prompt
from service.errors import Unavailable
from service.meters import Waited
from service.time_limit import our_wait
from workers.clients.ledger import Source
from workers.clients.llm import Book, Call
from workers.engine.budget import Till, reserve_own
from workers.engine.claimed import Claimed
from workers.engine.ledger import Ledger, Row, opening
from workers.engine.live import Voice
from workers.kit.memory import Facts, Guard, Stale, Step

T = TypeVar("T")


class Account(Struct, frozen=True):
    """Who pays: the claim, its event's own budget (`till`, of `limit_usd`), and the day's."""

    claimed: Claimed
    facts: Facts
    ledger: Ledger
    till: Till
    limit_usd: float | None
    voice: Voice

    def book(self, step: str, guard: Guard) -> Book:
        return StepBook(self, step, guard)


def account(
    claimed: Claimed, facts: Facts, ledger: Ledger, limit_usd: float | None, voice: Voice
) -> Callable[[str, Guard], Book]:
    """Books of one run, by step."""
    till = Till((limit_usd or 0.0) - facts.spent_usd)
    return Account(claimed, facts, ledger, till, limit_usd, voice).book


class StepBook:
    """One for each question, which may take several calls, one after the other."""

    def __init__(self, account: Account, step: str, guard: Guard) -> None:
        self._account: Final = account
        self._step: Final = step
        self._guard: Final = guard
        self._row: Row = ()
        self._usd = 0.0
        self._tills: list[Till] = []

    @property
    def asker(self) -> object:
        return self._account

    def recall(self, asked: str) -> tuple[int, str | None]:
        facts = self._account.facts
        ordinal = facts.asked[self._step, asked] = facts.asked.get((self._step, asked), 0) + 1
        return ordinal, facts.replies.get((self._step, asked, ordinal))

    def recalled(self, prompt: Prompt | Source) -> None:
        told = f"{prompt.name}@{prompt.version}"
        self._account.facts.steps.append(Step(self._step, self._account.facts.now(), 0.0, "recalled", prompt=told))

    async def whole(self, call: Coroutine[Any, Any, T]) -> T:
        return await self._account.ledger.whole(call)

    async def open(self, call: Call) -> None:
        account, self._usd, back_usd, opened = self._account, call.cost_usd, call.cost_usd, False
        call = replace(call, at=account.facts.now())  # the day that it is booked on is the same for all workers
        try:
            with our_wait():
                await self._reserve(call)
            await self._guard()
            held = account.ledger.purse is not None and call.cost_usd > 0
            self._row = opening(account.claimed, self._step, call, held=held)
            back_usd = 0.0  # from here on only Postgres knows whether it counts
            opened = await account.ledger.open(self._row, _unsent(call, "Postgres did not note it in time"))
        finally:
            if not opened:
                self._settle(back_usd)
        if not opened:
            raise Stale(str(account.claimed.event_id))
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

    def piece(self, call: Call, text: str) -> None:
        self._account.voice.piece(self._step, call, text)

    async def close(self, call: Call) -> None:
        if call.streamed:
            self._account.voice.ended(call)
        told = self._account.voice.answered(self._step, call) if call.streamed and call.outcome == "ok" else None
        kept = False
        try:
            kept = await self._account.ledger.close(self._row, call, told.n if told else None)
        except Unavailable:
            self._settle(0.0)
            raise
        finally:
            if told is not None:
                self._account.voice.stored(told, kept=kept)
        self._settle(self._usd - call.cost_usd)
        if call.outcome == "ok" and not kept:
            raise Stale(str(self._account.claimed.event_id))

    async def _reserve(self, call: Call) -> None:
        account = self._account
        if account.ledger.versions is not None:
            await account.ledger.versions.use(call)
        if account.limit_usd is not None:
            with Waited(account.ledger.meters, "callboard_budget_wait_seconds", ("event",)):
                await reserve_own(account.till, account.limit_usd, call.cost_usd)
            self._tills.append(account.till)
        if account.ledger.purse is not None and call.cost_usd > 0:
            with Waited(account.ledger.meters, "callboard_budget_wait_seconds", ("day",)):
                till = await account.ledger.purse.reserve(account.claimed, call.at, call.cost_usd)
            self._tills.append(till)

    def _settle(self, back_usd: float) -> None:
        for till in self._tills:
            till.settle(back_usd)
        self._tills = []


def _unsent(call: Call, why: str) -> Call:
    return replace(call, cost_usd=0.0, outcome="connection", cause=f"not sent: {why}")
