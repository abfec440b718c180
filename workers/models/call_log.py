"""The ledger: what is kept of every call to a model, from before it is made."""

import hashlib
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, Final, Protocol, TypeVar
from uuid import UUID, uuid4

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from prompts import Prompt, Target
from schemas.text import storable
from service.core.errors import CallboardError, Reject
from workers.models.errors import Booked, Fault
from workers.models.prices import Prices
from workers.models.provider import Answer, Request, Texts

T = TypeVar("T")

# Nothing is a token that is shorter than a byte; what a provider puts around a request, and its schema, are some more.
OVERHEAD_TOKENS: Final = 500
LETTERS_A_TOKEN: Final = 4


class BudgetSpent(Reject):
    """The event has spent what its pipeline allows."""


class DaySpent(CallboardError):
    """The day's budget is spent: the event waits `wait_s` seconds, until the next one."""

    def __init__(self, cause: str, wait_s: float) -> None:
        super().__init__(cause)
        self.wait_s: Final = wait_s


class Call(Struct, frozen=True):
    """One call, under way or ended; under way it has the most it may cost.

    `request_hash` names what was sent, to whichever model. `question_hash` names what the step asks for, and `ordinal`
    is 1 for the first identical question; a call that asks again with the error of the one before has both of that one.
    `streamed`: listeners get its text as it comes.
    """

    call_id: UUID
    at: datetime
    prompt: str
    version: int
    hash: str
    request_hash: str
    question_hash: str
    ordinal: int
    provider: str
    model: str
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0
    priced: bool = True
    ms: float = 0.0
    outcome: Booked = "open"
    cause: str | None = None
    reply: str | None = None
    simulated: bool = False
    streamed: bool = False


class Source(Struct, frozen=True):
    """What a call is made for where that is no prompt."""

    name: str
    version: int
    hash: str


EMBEDDING: Final = Source("(embed)", 0, "")


class CallLog(Protocol):
    """The ledger, as one question of one step sees it."""

    @property
    def asker(self) -> object:
        """One run of an event: the same for all of its questions."""

    def recall(self, question_hash: str) -> tuple[int, str | None]:
        """The ordinal of this question in the step, and the reply that an earlier try got to it."""

    def recalled(self, prompt: Prompt | Source) -> None:
        """Notes that no call was needed."""

    async def open(self, call: Call) -> None:
        """Reserves what the call may cost and notes it. Raises BudgetSpent or DaySpent where that is too much."""

    def text_delta(self, call: Call, text: str) -> None:
        """Tells a part of its reply to whoever listens to the event."""

    async def close(self, call: Call) -> None:
        """Stores how it ended, before the reply is used."""

    async def shield(self, call: Coroutine[Any, Any, T]) -> T:
        """Awaits a call that is booked to its end, also where nobody waits for it any more."""


class Question(Struct, frozen=True):
    """What is asked; the `model` of the request is the alias until a target is chosen."""

    prompt: Prompt | Source
    request: Request | Texts
    timeout_s: float
    call_log: CallLog
    question_hash: str = ""
    ordinal: int = 1
    streams: bool = False


class Try(Struct):
    """A question put to a target: `call` as it is opened, `begun` when it is sent; `tokens_max`: by its letters."""

    question: Question
    target: Target
    call: Call
    tokens_max: int
    begun: float

    @property
    def where(self) -> str:
        prompt = self.question.prompt
        what = f'Prompt "{prompt.name}" v{prompt.version}' if prompt.version else "An embedding"
        return f"{what} at {self.target.provider} {self.target.model}"


def begin(question: Question, target: Target, prices: Prices, *, simulated: bool) -> Try:
    prompt = question.prompt
    encoded = encode(question)
    most_usd = prices.cost_usd(
        target.provider, target.model, len(encoded) + OVERHEAD_TOKENS, question.request.max_tokens
    )
    call = Call(
        call_id=uuid4(),
        at=datetime.now(UTC),
        prompt=prompt.name,
        version=prompt.version,
        hash=prompt.hash,
        request_hash=hashed(encoded),
        question_hash=question.question_hash,
        ordinal=question.ordinal,
        provider=target.provider,
        model=target.model,
        cost_usd=most_usd or 0.0,
        priced=most_usd is not None,
        simulated=simulated,
        streamed=question.streams,
    )
    tokens_max = len(encoded) // LETTERS_A_TOKEN + question.request.max_tokens
    return Try(question, target, call, tokens_max, time.perf_counter())


def answered(begun: Try, outcome: Booked, answer: Answer, prices: Prices) -> Call:
    """The call with its reply, at what that cost; a reply that does not say its tokens, at the most it may."""
    target, counted = begun.target, answer.tokens_in + answer.tokens_out > 0
    cost_usd = prices.cost_usd(target.provider, target.model, answer.tokens_in, answer.tokens_out) or 0.0
    return replace(
        begun.call,
        tokens_in=answer.tokens_in,
        tokens_out=answer.tokens_out,
        cost_usd=cost_usd if counted else begun.call.cost_usd,
        ms=_ms(begun),
        outcome=outcome,
        reply=None if answer.text is None else storable(answer.text),
        simulated=answer.simulated,
    )


def failed(begun: Try, fault: Fault) -> Call:
    """The call without a reply: free where that is sure, else at the most it may cost."""
    if fault.free:
        return replace(begun.call, ms=_ms(begun), outcome=fault.outcome, cost_usd=0.0)
    return lost(begun, fault.outcome)


def lost(begun: Try, cause: str) -> Call:
    """The call, of which nobody can say whether it will be billed."""
    return replace(begun.call, ms=_ms(begun), outcome="unknown", cause=cause)


def encode(question: Question) -> bytes:
    """What one question has in common with the same one, whoever is asked and whichever event asks."""
    return question.prompt.hash.encode() + msgspec.json.encode(replace(question.request, headers={}))


def hashed(encoded: bytes) -> str:
    return hashlib.sha256(encoded).hexdigest()


def _ms(begun: Try) -> float:
    return (time.perf_counter() - begun.begun) * 1000
