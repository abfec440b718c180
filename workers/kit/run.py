"""The one handle a node gets: `run: Run`."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from hashlib import blake2b
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, Union, get_args, get_type_hints, overload
from uuid import UUID

import msgspec
from msgspec import Raw, Struct, json
from msgspec.structs import replace

from service.failpoints import hit
from service.settings import Settings
from workers.clients.embed import embed
from workers.clients.llm import Llm
from workers.clients.vectors import Document, Found, Vectors
from workers.clients.web import Reply, Web
from workers.kit.flow import Node, Stop
from workers.kit.memory import Effects, Entry, Facts, Guard, JournalMismatch, Keep, Kept, Step
from workers.kit.run_llm import Ledger, RunLlm, Whole, as_it_is

P = ParamSpec("P")
T = TypeVar("T")

CHEAP_MS: Final = 5.0


class Clients(Struct, frozen=True):
    """What a worker opens once and every run uses."""

    llm: Llm
    vectors: Vectors
    web: Web


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
        self.run.effects.documents.append(Document(collection, doc_id, text, embed(text), whole))


class RunWeb(Struct, frozen=True):
    """`run.web`: calls to the outside. They are at least once; the key of the step lets the other side drop repeats."""

    run: "Run"

    async def post(self, url: str, json: object, timeout_s: float = 10.0) -> Reply:
        """POST with `Idempotency-Key: {event_id}/{step}`. Raises Outage for what passes, Reject for a refusal (4xx)."""
        key = f"{self.run.event_id}/{self.run.step_key}"
        self.run.effects.outside = True
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
    keep: Keep
    whole: Whole = as_it_is
    simulated: bool = False
    step_key: str = ""
    effects: Effects = msgspec.field(default_factory=Effects)

    @property
    def llm(self) -> RunLlm:
        return RunLlm(
            self.event_id,
            self.number,
            self.claim,
            self.step_key,
            self.clients.llm,
            self.ledger,
            self.guard,
            self.whole,
            self.effects,
        )

    @property
    def vectors(self) -> RunVectors:
        return RunVectors(self)

    @property
    def web(self) -> RunWeb:
        return RunWeb(self)

    @overload
    async def step(
        self, node: Callable[Concatenate["Run", P], Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...

    @overload
    async def step(self, node: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    async def step(self, node: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any) -> Any:
        """Run a node as a step of a free-form pipeline; its Run, where it takes one, is put in.

        The step's key is the node, a hash of its arguments and the how-manieth with these: steps may come in any order.
        """
        given = json.encode([args, dict(sorted(kwargs.items()))])
        key = f"{node.__name__}:{blake2b(given, digest_size=6).hexdigest()}"
        nth = self.facts.counts[key] = self.facts.counts.get(key, 0) + 1
        own = self.at(key if nth == 1 else f"{key}#{nth}")
        inserted = [own] if takes_run(node) else []
        return await step(own, node, [*inserted, *args], kwargs)

    def at(self, step_key: str) -> "Run":
        """The same run, as another step sees it."""
        return replace(self, step_key=step_key, effects=Effects([], False))


async def step(run: Run, node: Node, arguments: Sequence[Any], named: Mapping[str, Any] | None = None) -> Any:
    """Run a node as `run.step_key`, or give back what the journal has of it.

    A step that touched the outside or took a while is stored before what depends on it starts; a cheap one rides in the
    settle, and may run again after a crash.
    """
    stored = run.facts.found.get(run.step_key)
    if stored is not None:
        return _replayed(run, node, stored)
    await run.guard()
    hit(run.settings, "step")
    at, begun = datetime.now(UTC), time.perf_counter()
    state = "failed"
    try:
        result = await node(*arguments, **(named or {}))
        await _keep(run, at, result, (time.perf_counter() - begun) * 1000)
        state = "done"
        return result
    except asyncio.CancelledError:
        state = "cancelled"
        raise
    finally:
        ms = (time.perf_counter() - begun) * 1000
        run.facts.steps.append(Step(run.step_key, at, round(ms, 3), state))


async def _keep(run: Run, at: datetime, result: Any, ms: float) -> None:
    stopped = isinstance(result, Stop)
    told = Raw(json.encode(result.result if stopped else result))
    entry = json.encode(Entry(told, stopped, run.effects.documents))
    kept = Kept(run.step_key, at, entry)
    if run.effects.outside or ms > CHEAP_MS:
        await run.keep(run.event_id, run.number, run.claim, kept)
    else:
        run.facts.kept.append(kept)
    run.facts.progress = True
    run.facts.documents.extend(run.effects.documents)


def _replayed(run: Run, node: Node, stored: Raw) -> Any:
    returns = returned(node)
    try:
        entry = json.decode(stored, type=Entry)
        result = Stop(entry.result) if entry.stopped else json.decode(entry.result, type=returns)
    except msgspec.MsgspecError as error:
        run.facts.steps.append(Step(run.step_key, datetime.now(UTC), 0.0, "failed"))
        raise JournalMismatch(
            f"what the journal has of step {run.step_key} is no {returns} any more ({error}). Replay from that step."
        ) from error
    run.facts.documents.extend(entry.documents)
    run.facts.steps.append(Step(run.step_key, datetime.now(UTC), 0.0, "replayed"))
    return result


@cache
def returned(node: Node) -> Any:
    """What a node says it returns, but for the Stop that ends a flow."""
    returns = get_type_hints(node)["return"]
    left = [each for each in get_args(returns) if each is not Stop]
    return Union[tuple(left)] if Stop in get_args(returns) and left else returns  # noqa: UP007 - made, not written


@cache
def takes_run(node: Node) -> bool:
    """Whether a node's first parameter is the run."""
    return next(iter(get_type_hints(node).values()), None) is Run
