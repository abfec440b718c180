"""`run.llm`: calls of models."""

from collections.abc import Awaitable, Coroutine
from typing import Any, Protocol, TypeVar
from uuid import UUID

from msgspec import Struct

from workers.clients.llm import Call, Llm
from workers.kit.memory import Effects, Guard

T = TypeVar("T")


class Ledger(Protocol):
    """Where calls are recorded before the step that made them goes on."""

    def __call__(self, event_id: UUID, run: int, claim: int, step: str, call: Call) -> Awaitable[None]: ...


class Whole(Protocol):
    """How a call is awaited that must be recorded even where nobody waits for it any more."""

    def __call__(self, call: Coroutine[Any, Any, T]) -> Awaitable[T]: ...


async def as_it_is(call: Coroutine[Any, Any, T]) -> T:
    return await call


class RunLlm(Struct, frozen=True):
    """`run.llm`: LLM calls, recorded in the ledger."""

    event_id: UUID
    number: int
    claim: int
    step_key: str
    llm: Llm
    ledger: Ledger
    guard: Guard
    whole: Whole
    effects: Effects

    async def ask(self, prompt: str, *, returns: type[T], model: str | None = None, **variables: object) -> T:
        """Render `prompt`, ask the model its head names (or `model`, an alias), decode the reply as `returns`.

        Raises Outage while no provider of the alias answers, LlmRefused where the request or its answer can't succeed.
        """
        await self.guard()
        self.effects.outside = True

        async def record(call: Call) -> None:
            await self.ledger(self.event_id, self.number, self.claim, self.step_key, call)
            await self.guard()  # another try or another provider is a new call

        labels = {"event_id": str(self.event_id), "step": self.step_key}
        asking = self.llm.ask(prompt, variables, returns=returns, model=model, record=record, labels=labels)
        return await self.whole(asking)
