"""The one handle a node gets: `run: Run`."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from itertools import takewhile
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, overload
from uuid import UUID, uuid4

import msgspec
from msgspec import Raw, Struct, json
from msgspec.structs import replace

from schemas import Event
from schemas.catalog import Catalog
from service.errors import Reject, WiringError
from service.failpoints import hit
from service.settings import Settings
from workers.clients.llm import Book
from workers.kit.emit import child, count
from workers.kit.flow import Node, Stop, where
from workers.kit.handles import Clients, RunVectors, RunWeb
from workers.kit.memory import Effects, Entry, Facts, Guard, JournalMismatch, Keep, Kept, Stale
from workers.kit.record import OnRecord, check_size, failed, in_time, note
from workers.kit.resources import Open, Uses, given_by
from workers.kit.run_llm import RunLlm
from workers.kit.scope import fits, named
from workers.kit.signature import annotations_of, call, hash_of, returned
from workers.kit.state import Load, State, close_states, no_states, open_states, set_states, taken

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound=Struct)

CHEAP_MS: Final = 5.0
DRAWN_MAX: Final = 1000


class Run(Struct, frozen=True):
    """One claim's run of one event, as the step `step_key` sees it."""

    event_id: UUID
    tenant: str
    source: str
    key: str | None
    number: int
    attempt: int
    claim: int
    clients: Clients
    book: Callable[[str, Guard], Book]
    facts: Facts
    settings: Settings
    guard: Guard
    keep: Keep
    limits_s: Mapping[Node, float] = {}
    resources: Sequence[Open] = ()
    simulated: bool = False
    catalog: Catalog = {}
    load: Load = no_states
    step_key: str = ""
    effects: Effects = msgspec.field(default_factory=Effects)

    @property
    def llm(self) -> RunLlm:
        book = partial(self.book, self.step_key, self.guard)
        return RunLlm(self.event_id, self.step_key, self.clients.llm, book, self.effects)

    @property
    def vectors(self) -> RunVectors:
        return RunVectors(self.tenant, self.source, self.clients.vectors, self.effects)

    @property
    def web(self) -> RunWeb:
        return RunWeb(self.event_id, self.step_key, self.clients.web, self.effects, self.guard)

    def emit(self, event: Event, *, key: str | None = None, due_at: datetime | None = None) -> None:
        """Say another event: stored with this one's end, in the same transaction, once however often the step is tried.

        Its `source` is `/events/{event_id}`. Raises Reject where the door would not take it.
        """
        child_id = f"{self.number}/{self.step_key}/{len(self.effects.children) + 1}"
        step_key = "" if self.effects.over else self.step_key
        said = child(self.catalog, event, step_key, child_id, key, due_at, self.settings.body_max)
        count(self.facts, said)
        self.effects.children.append(said)

    @overload
    async def step(
        self, node: Callable[Concatenate["Run", State[S], P], Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...

    @overload
    async def step(
        self, node: Callable[Concatenate[State[S], P], Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...

    @overload
    async def step(
        self, node: Callable[Concatenate["Run", P], Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...

    @overload
    async def step(self, node: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    async def step(self, node: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any) -> Any:
        """Run a node as a step of a free-form pipeline; its Run and its State are put in where it takes them.

        The step's key is the node, a hash of its arguments and the how-manieth with these: steps may come in any order.
        Raises WiringError where the node is no async function, says nothing of what it returns, or can't be called so.
        """
        inserted = put_in(node)
        is_resource = self.clients.resources.is_one
        given = [each for each in args if not is_resource(each)]
        by_name = {name: each for name, each in sorted(kwargs.items()) if not is_resource(each)}
        own = self.at(self._numbered(f"{node.__name__}:{hash_of(node, [given, by_name])}"))
        return await step(own, node, [*(own if each is Run else each for each in inserted), *args], kwargs)

    async def resource(self, kind: type[T]) -> T:
        """The resource of this type, among those that the pipeline names; opened if it isn't yet."""
        opening = next((each for each in self.resources if fits(given_by(each), kind)), None)
        if opening is None:
            raise WiringError(f"the pipeline names no resource that gives {named(kind)}. Add it to its `resources`.")
        found: T = await self.clients.resources.get(opening)
        return found

    def now(self) -> datetime:
        """The time, in UTC. In the free form, between steps, a retry sees the same; so with the two below."""
        return self._drawn("now()", datetime, lambda: datetime.now(UTC))

    def random(self) -> float:
        """A number from 0 up to 1."""
        return self._drawn("random()", float, random.random)

    def uuid(self) -> UUID:
        return self._drawn("uuid()", UUID, uuid4)

    def _drawn(self, name: str, kind: type[T], draw: Callable[[], T]) -> T:
        """In a step the value is part of the step; between steps it is journaled before anything else is started."""
        if self.step_key:
            return draw()
        key = self._numbered(name)
        if (stored := self.facts.found.get(key)) is not None:
            return json.decode(json.decode(stored, type=Entry).result, type=kind)
        if self.facts.counts[name] > DRAWN_MAX:
            raise Reject(f"run.{name} was asked {DRAWN_MAX} times between steps. Ask it in a node: there it is free.")
        value = draw()
        kept = Kept(key, datetime.now(UTC), json.encode(Entry(Raw(json.encode(value)))))
        self.facts.kept.append(kept)
        self.facts.drawn.append(kept)
        return value

    def _numbered(self, name: str) -> str:
        nth = self.facts.counts[name] = self.facts.counts.get(name, 0) + 1
        return name if nth == 1 else f"{name}#{nth}"

    def at(self, step_key: str) -> "Run":
        """The same run, as another step sees it; when that is over, nothing more is started in its name."""
        effects = Effects()
        return replace(self, step_key=step_key, effects=effects, guard=partial(_guard, self, effects))


async def _guard(run: Run, effects: Effects) -> None:
    await run.guard()
    if effects.over:
        raise Stale("the step is over")
    if drawn := list(run.facts.drawn):
        await asyncio.gather(*(run.keep(run.event_id, run.number, run.claim, each) for each in drawn))
        run.facts.drawn = [each for each in run.facts.drawn if each not in drawn]


async def step(
    run: Run, node: Node, arguments: Sequence[Any], named: Mapping[str, Any] | None = None, uses: Uses = ()
) -> Any:
    """Run a node as `run.step_key`, or give back what the journal has of it.

    A step that touched the outside or took a while is stored before what depends on it starts; a cheap one rides in the
    settle, and may run again after a crash.
    """
    stored = run.facts.found.get(run.step_key)
    if stored is not None:
        return _replayed(run, node, stored)
    await run.guard()
    hit(run.settings, "step", run.step_key)
    with OnRecord(run.facts, run.step_key, run.effects) as record:
        given = list(arguments)
        for place, opening in uses:
            given[place] = await run.clients.resources.get(opening)
        given = await open_states(given, run.facts, run.load)
        try:
            result = await in_time(call(node, given, named), where(node), run.limits_s.get(node), run.facts)
            await _keep(run, record, result, given)
        finally:
            close_states(given, run.facts)
        return result


async def _keep(run: Run, record: OnRecord, result: Any, given: Sequence[Any]) -> None:
    stopped = isinstance(result, Stop)
    told = Raw(json.encode(result.result if stopped else result))
    check_size(f"the result of step {run.step_key}", len(told), run.settings.result_max)
    effects = run.effects
    entry = Entry(told, stopped, effects.documents, effects.children, set_states(given))
    took_state = any(isinstance(each, State) for each in given)
    kept = Kept(run.step_key, record.at, json.encode(entry), took_state, bool(effects.children))
    if effects.outside or record.ms > CHEAP_MS:
        hit(run.settings, "step_done", run.step_key)
        await run.keep(run.event_id, run.number, run.claim, kept)
        hit(run.settings, "step_kept", run.step_key)
    else:
        run.facts.kept.append(kept)
    run.facts.progress = True
    run.facts.ask(entry)


def _replayed(run: Run, node: Node, stored: Raw) -> Any:
    returns = returned(node)
    try:
        entry = json.decode(stored, type=Entry)
        result = Stop(entry.result) if entry.stopped else json.decode(entry.result, type=returns)
    except msgspec.MsgspecError as error:
        misfit = JournalMismatch(
            f"what the journal has of step {run.step_key} is no {returns} any more ({error}). Replay from that step."
        )
        failed(run.facts, run.step_key, datetime.now(UTC), 0.0, misfit)
        raise misfit from error
    for each in entry.children:
        count(run.facts, each)
    run.facts.ask(entry)
    note(run.facts, run.step_key, datetime.now(UTC), 0.0, "replayed")
    return result


@cache
def put_in(node: Node) -> list[Any]:
    """What a node takes before the arguments that a free-form pipeline gives: the Run, then States."""
    hints = [hint for name, hint in annotations_of(node).items() if name != "return"]
    before = [Run] if hints[:1] == [Run] else []
    states = (taken(hint, where(node)) for hint in hints[len(before) :])
    return [*before, *takewhile(lambda each: each is not None, states)]
