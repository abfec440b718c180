"""The one handle a node gets: `run: Run`."""

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, overload
from uuid import UUID, uuid4

import msgspec
from msgspec import Raw, Struct, json
from msgspec.structs import replace

from schemas import Event
from service.core.errors import Reject, WiringError
from service.core.failpoints import hit
from workers.kit.emit import child, count
from workers.kit.entries import complete, entry_of, name_of, replay, store
from workers.kit.flow import Node, where
from workers.kit.handles import RunDeps, RunVectors, RunWeb
from workers.kit.memory import Effects, Entry, Guard, Kept, StepOver, step_guard
from workers.kit.record import OnRecord, in_time
from workers.kit.resources import Uses, given_by
from workers.kit.run_llm import RunLlm
from workers.kit.scope import fits, named
from workers.kit.settings import Settings, SettingsSlot
from workers.kit.signature import call, put_in
from workers.kit.state import State, close_states, open_states

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound=Settings | State[Any])

CHEAP_MS: Final = 5.0
WITHIN: Final = ">"  # in a key, behind that of the step around it; operate.sql knows it too
DRAWN_MAX: Final = 1000


class Run(Struct, frozen=True):
    """One claim's run of one event, as the step `step_key` sees it.

    `number` is that of the run: 1, and one more with each replay. `attempt` is that of the try, from 1.
    """

    event_id: UUID
    tenant: str
    source: str
    key: str | None
    number: int
    attempt: int
    _deps: RunDeps
    _guard: Guard
    step_key: str = ""
    _effects: Effects = msgspec.field(default_factory=Effects)
    _outer: Effects = msgspec.field(default_factory=Effects)

    @property
    def simulated(self) -> bool:
        """Whether the words of models are the simulator's."""
        return self._deps.settings.simulated

    @property
    def llm(self) -> RunLlm:
        call_log = partial(self._deps.call_log, self.step_key, self.outside)
        return RunLlm(self.event_id, self.step_key, self._deps.clients.llm, call_log, self._effects)

    @property
    def vectors(self) -> RunVectors:
        return RunVectors(self.tenant, self.source, self.step_key, self._deps.clients.vectors, self._effects)

    @property
    def web(self) -> RunWeb:
        return RunWeb(self.event_id, self.step_key, self._deps.clients.web, self._effects, self.outside)

    async def outside(self) -> None:
        """Await this before your code touches what Callboard can't see: a socket, a file, an SDK of your own.

        It stores the steps that have completed, so that nothing outside depends on a value that a crash would lose, and
        has this step stored when it completes (in the body of a free form, each step behind it). `run.llm`, `run.web`
        and resources need no such call.
        """
        self._effects.outside = True
        if self._deps.facts.unstored:
            await self._store()
        await self._guard()

    async def _store(self) -> None:
        """Store the steps that have completed; what may touch the outside does so before."""
        await store(self._deps.facts, partial(self._deps.keep, self.event_id, self.number, self._deps.claim))

    def emit(self, event: Event, *, key: str | None = None, due_at: datetime | None = None) -> None:
        """Say another event: stored with this one's end, in the same transaction, once however often the step is tried.

        Its `source` is `/events/{event_id}`. Raises Reject where the door would not take it.
        """
        child_id = f"{self.number}/{self.step_key}/{len(self._effects.children) + 1}"
        step_key = "" if self._effects.over else self.step_key
        emitted = child(self._deps.catalog, event, step_key, child_id, key, due_at, self._deps.settings.body_max)
        count(self._deps.facts, emitted)
        self._effects.children.append(emitted)

    @overload
    async def step(
        self, node: Callable[Concatenate["Run", S, P], Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...

    @overload
    async def step(
        self, node: Callable[Concatenate[S, P], Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...

    @overload
    async def step(
        self, node: Callable[Concatenate["Run", P], Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...

    @overload
    async def step(self, node: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    async def step(self, node: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any) -> Any:
        """Run a node as a step of a free-form pipeline; its Run, Settings and State are put in where it takes them.

        The step's key is the node, a hash of its arguments and their ordinal: steps may come in any order.
        Raises WiringError where the node is no async function, says nothing of what it returns, or can't be called so.
        """
        inserted, own_settings = put_in(node, Run), self._deps.clients.own_settings
        is_resource = self._deps.clients.resources.is_one
        inputs = [argument for argument in args if not is_resource(argument)]
        by_name = {name: argument for name, argument in kwargs.items() if not is_resource(argument)}
        own = as_step(self, self._numbered(name_of(node, inputs, by_name)))
        self._keep_drawn()
        takes_resource = len(inputs) + len(by_name) < len(args) + len(kwargs)
        handles = [
            own if put is Run else put.among(own_settings) if isinstance(put, SettingsSlot) else put for put in inserted
        ]
        return await step(own, node, [*handles, *args], kwargs, outside=takes_resource)

    async def resource(self, kind: type[T]) -> T:
        """The resource of this type, among those that the pipeline names; opened if it isn't yet.

        Whatever takes one may touch the outside by it, as with `outside`.
        """
        opening = next((resource for resource in self._deps.resources if fits(given_by(resource), kind)), None)
        if opening is None:
            raise WiringError(f"the pipeline names no resource that gives {named(kind)}. Add it to its `resources`.")
        await self.outside()
        opened: T = await self._deps.clients.resources.get(opening)
        return opened

    def now(self) -> datetime:
        """The time in UTC, on the clock of Postgres, with which `due_at` is compared; this machine's may be wrong.

        In the free form, between steps, a retry sees the same; so with the two below.
        """
        return self._drawn("now()", datetime, self._deps.facts.now)

    def random(self) -> float:
        """A number from 0 up to 1."""
        return self._drawn("random()", float, random.random)

    def uuid(self) -> UUID:
        return self._drawn("uuid()", UUID, uuid4)

    def _drawn(self, name: str, kind: type[T], draw: Callable[[], T]) -> T:
        """Between steps the value is journaled as the result of a cheap step is.

        In a step it is part of the step, and journaled too where the step goes on to run a step of its own.
        """
        key = self._numbered(name)
        if (stored := self._deps.facts.journal.get(key)) is not None:
            return json.decode(json.decode(stored, type=Entry).result, type=kind)
        value, drawn = draw(), self._effects.drawn
        if len(drawn) <= DRAWN_MAX:  # one more than may be kept, for a step that is run behind them to refuse
            drawn.append(Kept(key, self._deps.facts.now(), json.encode(Entry(Raw(json.encode(value))))))
        if not self.step_key:
            if self._deps.facts.counts[name] > DRAWN_MAX:
                raise _drew_much(name)
            self._keep_drawn()
        return value

    def _keep_drawn(self) -> None:
        """A step that is run now may depend on what was drawn before it."""
        if len(self._effects.drawn) > DRAWN_MAX:
            raise _drew_much("now(), run.random() and run.uuid()")
        for drawn in self._effects.drawn:
            self._deps.facts.keep(drawn)
        self._effects.drawn.clear()

    def _numbered(self, name: str) -> str:
        """Of steps and draws within a step the key begins with its key: two steps may do the same within them."""
        path = f"{self.step_key}{WITHIN}{name}" if self.step_key else name
        nth = self._deps.facts.counts[path] = self._deps.facts.counts.get(path, 0) + 1
        return path if nth == 1 else f"{path}#{nth}"


def as_step(run: Run, step_key: str) -> Run:
    """The same run, as another step sees it; when that is over, nothing more is started in its name."""
    effects = Effects(is_step=bool(step_key))
    guard = partial(step_guard, run._guard, effects)
    return replace(run, step_key=step_key, _effects=effects, _outer=run._effects, _guard=guard)


def _drew_much(name: str) -> Reject:
    return Reject(f"run.{name}: {DRAWN_MAX} values may be drawn between steps. Draw them in a node that runs no steps.")


async def step(
    run: Run,
    node: Node,
    arguments: Sequence[Any],
    named: Mapping[str, Any] | None = None,
    uses: Uses = (),
    *,
    outside: bool = False,
) -> Any:
    """Run a node as `run.step_key`, or give back what the journal has of it.

    A step that touched the outside or took a while is stored when it completes, with all that completed before it; a
    cheap one is stored before anything touches the outside, or with the settle.
    """
    stored = run._deps.facts.journal.get(run.step_key)
    if stored is not None:
        return replay(run._deps.facts, run.step_key, node, stored, run._outer)
    await run._guard()
    hit(run._deps.settings, "step", run.step_key)
    if uses or outside:
        await run.outside()
    with OnRecord(run._deps.facts, run.step_key, run._effects) as record:
        inputs = list(arguments)
        for index, opening in uses:
            inputs[index] = await run._deps.clients.resources.get(opening)
        inputs = await open_states(inputs, run._deps.facts, run._deps.load)
        try:
            result = await in_time(call(node, inputs, named), where(node), run._deps.limits_s.get(node))
            return await _complete(run, record, node, result, inputs)
        finally:
            close_states(inputs, run._deps.facts)


async def _complete(run: Run, record: OnRecord, node: Node, result: Any, inputs: Sequence[Any]) -> Any:
    own, goes_on = entry_of(run.step_key, node, result, inputs, run._effects, run._deps.settings.result_max)
    if run._outer.over:
        raise StepOver("the step around this one is over: await each step that a node runs")
    complete(run._deps.facts, run.step_key, record.at, own, run._effects, run._outer)
    if run._effects.outside or run._outer.outside or record.ms > CHEAP_MS or run._deps.facts.kept_much:
        hit(run._deps.settings, "step_done", run.step_key)
        await run._store()
        hit(run._deps.settings, "step_kept", run.step_key)
    return goes_on
