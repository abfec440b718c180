"""One call of one model: behind its breaker, in the ledger before it is made and after it has ended, in time."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from prompts import Target
from service.core.errors import CallboardError, Outage
from service.core.metrics import Meters, Waited
from workers.models.call_log import Call, Question, Try, answered, begin, failed, lost
from workers.models.circuit_breaker import Breaker, BreakerOpen, Policy, Verdict
from workers.models.errors import ALONE_MAX, SICK, WAIT_CAP_S, Fault
from workers.models.permit import Permit
from workers.models.prices import Prices
from workers.models.provider import Answer, Client, Embedder
from workers.models.rate_limits import RateLimiter

T = TypeVar("T")

# A failure may be the event's own where the model answers others, in less than five doubled waits take (31 s).
DOUBTFUL_MAX: Final = 5
ANSWERED_S: Final = 30.0
PRICELESS: Final = "%s %s has no price, so that no budget holds it: give it usd_per_million in prompts/models.toml"

log = logging.getLogger("callboard.llm")

Send = Callable[[Any, Any], Awaitable[Answer]]
"""Asks a client once, for the request of the question at the model of the target. Raises Fault."""


class LlmRefused(CallboardError):
    """The model or its provider will not do what was asked: the event's own failure."""


class Caller:
    """The clients of the models that can be asked, and what is known of each: prices, breakers, limits (`limiters`)."""

    def __init__(
        self,
        clients: Mapping[str, Client],
        limiters: Mapping[Target, RateLimiter],
        policy: Policy,
        *,
        simulated: bool,
        meters: Meters | None = None,
    ) -> None:
        self.simulated: Final = simulated
        self._meters: Final = meters or Meters()
        self._clients: Final = clients
        self._limiters: Final = limiters
        self._prices: Final = Prices(limiters)
        for target in limiters:
            # Now, since the first look into the price list takes half a second.
            if self._prices.cost_usd(target.provider, target.model, 0, 0) is None:
                log.warning(PRICELESS, target.provider, target.model)
        self._breakers: Final = {
            target: Breaker(f"{target.provider} {target.model}", _verdict, policy) for target in limiters
        }

    def knows(self, target: Target) -> bool:
        return target in self._breakers

    def embeds(self, target: Target) -> bool:
        return isinstance(self._clients[target.provider], Embedder)

    def breakers(self) -> dict[str, str]:
        """The state of each, by provider and model: closed, open or half_open."""
        return {_name(target): breaker.state for target, breaker in self._breakers.items()}

    def states(self) -> dict[str, str]:
        """Breakers and limits, by the name under which events wait for them."""
        return self.breakers() | {limiter.name: limiter.state for limiter in self._limiters.values()}

    def begin(self, question: Question, target: Target) -> Try:
        return begin(question, target, self._prices, simulated=self.simulated)

    async def along(self, chain: Sequence[Target], ask: Callable[[Target], Awaitable[T]]) -> T:
        """What the first of `chain` answers. Raises Outage where none can now."""
        outages: list[Outage] = []
        for target in chain:
            try:
                return await ask(target)
            except Outage as outage:
                outages.append(outage)
        raise _spent(outages) from outages[-1]

    async def make(self, begun: Try, send: Send) -> Answer:
        """Raises Outage where this one can't answer now, LlmRefused where it will not."""
        breaker, blocked_by, asker = self._breakers[begun.target], [_name(begun.target)], begun.question.call_log.asker
        try:
            breaker.check(asker)  # of what it would not make, nothing is taken off the limits
            target = begun.target
            waited = Waited(self._meters, "callboard_llm_limiter_wait_seconds", (target.provider, target.model))
            async with self._limiters[target].permit(begun.tokens_max, waited) as permit:
                answer = await breaker.call(lambda: self._booked(begun, send, permit), asker)
                permit.used = answer.tokens_in + answer.tokens_out or None  # what is not said is not nothing
                return answer
        except BreakerOpen as error:
            raise Outage(str(error), min(error.after_s, WAIT_CAP_S), blocked_by=blocked_by) from error
        except Fault as fault:
            if fault.outcome in SICK | {"setup"}:
                raise fault.outage(_max_uncharged(fault, breaker), blocked_by) from fault
            if fault.away:
                if fault.after_s is not None:
                    self._limiters[begun.target].pause(fault.after_s)
                raise fault.outage() from fault
            raise LlmRefused(f"{begun.where}: {fault}") from fault

    def listener(self, begun: Try) -> Callable[[str], None]:
        """Tells the pieces of a streamed reply to whoever follows, and measures when the first one came."""
        call_log, came = begun.question.call_log, False

        def on_text(text: str) -> None:
            nonlocal came
            if not came:
                came = True
                self._observe("callboard_llm_first_token_seconds", begun.begun, begun.target)
            call_log.text_delta(begun.call, text)

        return on_text

    def _observe(self, name: str, since: float, target: Target, *labels: str) -> None:
        self._meters.observe(name, time.perf_counter() - since, (target.provider, target.model, *labels))

    async def close(self, begun: Try, answer: Answer, fault: Fault | None = None, *, valid: bool = True) -> None:
        """Stores what came of a call that was answered: its reply is as asked (`valid`), or not, or a `fault`."""
        outcome = fault.outcome if fault else "ok" if valid else "invalid"
        await begun.question.call_log.close(answered(begun, outcome, answer, self._prices))

    async def _booked(self, begun: Try, send: Send, permit: Permit) -> Answer:
        """A call that brought no answer is closed here, whatever ended it."""
        call_log = begun.question.call_log
        await call_log.open(begun.call)
        permit.is_sent, begun.begun = True, time.perf_counter()
        ended: Call | None = lost(begun, "cancelled")
        try:
            answer = await self._in_time(begun, send)
            ended = None
        except Fault as fault:
            ended = failed(begun, fault)
            raise
        finally:
            if ended is not None:
                await call_log.close(ended)
        return answer

    async def _in_time(self, begun: Try, send: Send) -> Answer:
        target, timeout_s = begun.target, begun.question.timeout_s
        request = replace(begun.question.request, model=target.model)
        try:
            async with asyncio.timeout(timeout_s):
                return await send(self._clients[target.provider], request)
        except TimeoutError as error:
            message = f"{target.provider} {target.model} gave no whole reply in {timeout_s:g} s."
            raise Fault("timeout", message) from error


def _name(target: Target) -> str:
    return f"{target.provider}/{target.model}"


def _spent(outages: Sequence[Outage]) -> Outage:
    """Of a whole chain. Where one of it is surely away, that is why the event waits, and not the event."""
    free = [outage.max_uncharged for outage in outages]
    return Outage(
        " ".join(dict.fromkeys(outage.cause for outage in outages)),
        min(outage.after_s for outage in outages),
        known_delay=any(outage.known_delay for outage in outages),
        max_uncharged=None if None in free else max(number for number in free if number is not None),
        blocked_by=[name for outage in outages for name in outage.blocked_by],
        wait_max_s=min(outage.wait_max_s for outage in outages),
    )


def _max_uncharged(fault: Fault, breaker: Breaker) -> int | None:
    """How many snoozes in a row are uncharged after this; None: all, since the breaker is open by now."""
    if breaker.state != "closed":
        return None
    return DOUBTFUL_MAX if breaker.answered_s_ago < ANSWERED_S else ALONE_MAX


def _verdict(error: Exception) -> Verdict:
    if not isinstance(error, Fault):
        return "neutral"
    if error.outcome == "setup":
        return "fatal"
    if error.outcome in SICK:
        return "failure"
    return "success" if error.outcome == "refused" else "neutral"
