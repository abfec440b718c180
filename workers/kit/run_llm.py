"""`run.llm`: calls of models."""

from collections.abc import Callable, Sequence
from typing import TypeVar
from uuid import UUID

from msgspec import Struct

from workers.kit.memory import Effects, check_in_step
from workers.kit.ordered import in_order
from workers.models.client import CallLog, Llm

T = TypeVar("T")


class RunLlm(Struct, frozen=True):
    """`run.llm`: LLM calls, each in the ledger before it is made; one that was answered is not made again."""

    _event_id: UUID
    _step_key: str
    _llm: Llm
    _call_log: Callable[[], CallLog]
    _effects: Effects

    async def ask(self, prompt: str, *, returns: type[T], model: str | None = None, **variables: object) -> T:
        """Render `prompt`, ask the model its head names (or `model`, an alias), decode the reply as `returns`.

        Raises Outage while no provider of the alias answers, LlmRefused where the request or its answer can't succeed,
        BudgetSpent or DaySpent where it may cost more than is left; WiringError where there is no such prompt or alias,
        a variable is missing or unknown, or no model can reply what `returns` is.
        """
        self._begin("ask")
        return await self._llm.ask(
            prompt, in_order(variables), returns=returns, model=model, call_log=self._call_log(), labels=self._labels()
        )

    async def stream(self, prompt: str, *, returns: type[T], model: str | None = None, **variables: object) -> T:
        """As `ask`; who follows `GET /events/{event_id}/stream` sees the reply while it is written.

        A Struct comes there as the JSON it is written in. Besides its end, its first token and each next one have a
        deadline: 120, 30 and 15 s.
        """
        self._begin("stream")
        return await self._llm.stream(
            prompt, in_order(variables), returns=returns, model=model, call_log=self._call_log(), labels=self._labels()
        )

    async def embed(self, texts: Sequence[str], *, model: str = "embed") -> list[list[float]]:
        """A vector for each text, in that order, from the models of the alias `model`: numbers of float32 precision.

        Each call takes up to 64 texts; what was paid for is not asked again. Raises what `ask` raises.
        """
        self._begin("embed")
        return await self._llm.embed(texts, model=model, call_log=self._call_log, labels=self._labels())

    def _begin(self, call: str) -> None:
        """The step is stored when it completes, also where its reply is remembered and no call is made."""
        check_in_step(f"run.llm.{call}", self._step_key, self._effects)
        self._effects.outside = True

    def _labels(self) -> dict[str, str]:
        return {"event_id": str(self._event_id), "step": self._step_key}
