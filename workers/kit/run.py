"""The one handle a node gets: `run: Run`."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar
from uuid import UUID

from msgspec import Struct

from service.failpoints import hit
from service.settings import Settings
from workers.clients.embed import embed
from workers.clients.llm import Call, Llm
from workers.clients.vectors import Document, Found, Vectors
from workers.clients.web import Reply, Web
from workers.kit.flow import Node

T = TypeVar("T")


class Step(Struct, frozen=True):
    """One execution of a node, for the timeline."""

    step: str
    at: datetime
    ms: float
    state: str


class Clients(Struct, frozen=True):
    """What a worker opens once and every run uses."""

    llm: Llm
    vectors: Vectors
    web: Web


class Ledger(Protocol):
    """Where calls are recorded before the step that made them goes on."""

    def __call__(self, event_id: UUID, run: int, claim: int, step: str, call: Call) -> Awaitable[None]: ...


Guard = Callable[[], Awaitable[None]]
"""Returns while this worker holds its lease; waits where it may have lost it."""


class Facts(Struct):
    """What a run has done so far: its steps, and the documents that its settle will write."""

    steps: list[Step]
    documents: list[Document]


class RunLlm(Struct, frozen=True):
    """`run.llm`: LLM calls, recorded in the ledger."""

    run: "Run"

    async def ask(self, prompt: str, *, returns: type[T], model: str | None = None, **variables: object) -> T:
        """Render `prompt`, ask the model its head names (or `model`, an alias), decode the reply as `returns`.

        Raises Outage while no provider of the alias answers, LlmRefused where the request or its answer can't succeed.
        """
        run = self.run
        await run.guard()

        async def record(call: Call) -> None:
            await run.ledger(run.event_id, run.number, run.claim, run.step_key, call)
            await run.guard()  # another try or another provider is a new call

        labels = {"event_id": str(run.event_id), "step": run.step_key}
        return await run.clients.llm.ask(prompt, variables, returns=returns, model=model, record=record, labels=labels)


class RunVectors(Struct, frozen=True):
    """`run.vectors`: search now; what is written becomes visible with the event's own end, in the same transaction."""

    run: "Run"

    async def search(
        self, collection: str, text: str, k: int = 10, sources: Sequence[str] | None = None
    ) -> list[Found]:
        """The `k` documents nearest to `text`, best first; only those written for `sources`, where given."""
        return await self.run.clients.vectors.search(collection, embed(text), k, sources)

    def upsert(self, collection: str, doc_id: str, text: str, metadata: Mapping[str, str] | None = None) -> None:
        """Keep `text` under `doc_id`, embedded; its metadata also says the event's `source`."""
        whole = {"source": self.run.source, **(metadata or {})}
        self.run.facts.documents.append(Document(collection, doc_id, text, embed(text), whole))


class RunWeb(Struct, frozen=True):
    """`run.web`: calls to the outside. They are at least once; the key of the step lets the other side drop repeats."""

    run: "Run"

    async def post(self, url: str, json: object, timeout_s: float = 10.0) -> Reply:
        """POST with `Idempotency-Key: {event_id}/{step}`. Raises Outage for what passes, Reject for a refusal (4xx)."""
        key = f"{self.run.event_id}/{self.run.step_key}"
        return await self.run.clients.web.post(url, json=json, idempotency_key=key, timeout_s=timeout_s)


class Run(Struct, frozen=True):
    """One claim's run of one event, as the step `step_key` sees it."""

    event_id: UUID
    source: str
    key: str | None
    number: int
    attempt: int
    claim: int
    clients: Clients
    ledger: Ledger
    facts: Facts
    settings: Settings
    guard: Guard
    simulated: bool = False
    step_key: str = ""

    @property
    def llm(self) -> RunLlm:
        return RunLlm(self)

    @property
    def vectors(self) -> RunVectors:
        return RunVectors(self)

    @property
    def web(self) -> RunWeb:
        return RunWeb(self)


async def step(run: Run, node: Node, arguments: Sequence[Any]) -> Any:
    """Run a node as `run.step_key`: the one place where its time is taken and its end noted."""
    await run.guard()
    hit(run.settings, "step")
    at, begun = datetime.now(UTC), time.perf_counter()
    state: str = "failed"
    try:
        result = await node(*arguments)
        state = "done"
        return result
    except asyncio.CancelledError:
        state = "cancelled"
        raise
    finally:
        run.facts.steps.append(Step(run.step_key, at, round((time.perf_counter() - begun) * 1000, 3), state))
