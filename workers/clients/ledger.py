"""The ledger: what is kept of every call to a model."""

import hashlib
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from uuid import UUID, uuid4

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from prompts import Prompt, Target
from workers.clients.faults import Outcome
from workers.clients.provider import Answer, Request


class Call(Struct, frozen=True):
    """One call, completed or failed. `request_hash` names what was asked, whoever was asked."""

    call_id: UUID
    at: datetime
    prompt: str
    version: int
    hash: str
    request_hash: str
    provider: str
    model: str
    tokens_in: int
    tokens_out: int
    cost_usd: float
    priced: bool
    ms: float
    outcome: Outcome
    reply: str | None
    simulated: bool


Record = Callable[[Call], Awaitable[None]]


class Question(Struct, frozen=True):
    """What is asked; the `model` of the request is the alias until a target is chosen."""

    prompt: Prompt
    request: Request
    timeout_s: float
    record: Record


class Try(Struct, frozen=True):
    """A question that has been put to a target."""

    question: Question
    target: Target
    at: datetime
    begun: float

    @property
    def where(self) -> str:
        prompt = self.question.prompt
        return f'Prompt "{prompt.name}" v{prompt.version} at {self.target.provider} {self.target.model}'


def begin(question: Question, target: Target) -> Try:
    return Try(question, target, datetime.now(UTC), time.perf_counter())


def entry(begun: Try, outcome: Outcome, answer: Answer, cost_usd: float | None) -> Call:
    """What the ledger keeps; `cost_usd` is None where the price is unknown."""
    prompt = begun.question.prompt
    return Call(
        call_id=uuid4(),
        at=begun.at,
        prompt=prompt.name,
        version=prompt.version,
        hash=prompt.hash,
        request_hash=_hash(begun.question),
        provider=begun.target.provider,
        model=begun.target.model,
        tokens_in=answer.tokens_in,
        tokens_out=answer.tokens_out,
        cost_usd=cost_usd or 0.0,
        priced=cost_usd is not None,
        ms=(time.perf_counter() - begun.begun) * 1000,
        outcome=outcome,
        reply=None if answer.text is None else answer.text.replace("\x00", "\ufffd"),
        simulated=answer.simulated,
    )


def _hash(question: Question) -> str:
    same = replace(question.request, headers={})
    return hashlib.sha256(question.prompt.hash.encode() + msgspec.json.encode(same)).hexdigest()
