"""A flow compiled: every parameter bound to what produces it. This is what runs, and what is drawn."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from schemas import Event
from service.core.errors import Outage, Reject, Unavailable, WiringError
from workers.kit.failures import CONTAINED, deciding, leaves, stale_in
from workers.kit.flow import OTHERWISE, Node, Stop
from workers.kit.memory import JournalMismatch, Stale, TooLarge
from workers.kit.resources import Uses
from workers.kit.run import Run, as_step, step
from workers.kit.settings import SettingsSlot
from workers.kit.signature import call
from workers.kit.state import Taken
from workers.models.call_log import DaySpent

RUN = "the run"  # no name of a node: those have no blank
EVENT = "the event"
ITEM = "the item"
AFTER = "what it follows"

Results = dict[str, Any]
Takes = tuple[str | Taken | SettingsSlot, ...]
Work = Callable[[], Coroutine[Any, Any, Any]]


class BoundNode(Struct, frozen=True):
    """A node under its step key; `takes` names the producer of each argument, or the state or settings put in for it;
    `uses` says which are resources."""

    step_key: str
    node: Node
    takes: "Takes"
    uses: Uses = ()


class BoundParallel(Struct, frozen=True):
    members: "tuple[Plan, ...]"
    at_once: int
    collect: bool


class BoundEach(Struct, frozen=True):
    """A node for every item of what `items` gave; ITEM in `bound.takes` is the item's producer."""

    bound: BoundNode
    items: str
    at_once: int
    collect: bool


class BoundRoute(Struct, frozen=True):
    """`gives` maps what comes out of the route to the step of each branch, by label, which produces it."""

    router: BoundNode
    branches: Mapping[str, "Plan"]
    otherwise: "Plan | None"
    gives: Mapping[str, Mapping[str, str]]


class Free(Struct, frozen=True):
    """A free-form pipeline: a function that runs its steps by `run.step`."""

    body: Node
    takes: "Takes" = (RUN, EVENT)


Part = BoundNode | BoundParallel | BoundEach | BoundRoute | Free
Plan = tuple[Part, ...]


class _Stopped(Exception):
    """A node ended the flow."""

    def __init__(self, result: Any) -> None:
        super().__init__("stopped")
        self.result = result


ENDING: Final = (Outage, Unavailable, DaySpent, Reject, WiringError, JournalMismatch, TooLarge, _Stopped)
"""What ends an attempt, or its flow, in a `parallel` that collects too."""


async def execute(plan: Plan, run: Run, event: Event, after_result: Any = None) -> Any:
    """Run the plan; its result is what its last part gives (of `parallel` and `each` a list), or what stopped it.

    `after_result` is what the pipeline gave that this one is after.
    """
    try:
        return await _parts(plan, run, {EVENT: event, AFTER: after_result})
    except _Stopped as stopped:
        return stopped.result


async def _parts(plan: Plan, run: Run, results: Results) -> Any:
    last: Any = None
    for part in plan:
        match part:
            case BoundNode():
                last = await _node(part, run, results)
            case BoundParallel():
                last = await _parallel(part, run, results)
            case BoundEach():
                last = await _each(part, run, results)
            case BoundRoute():
                last = await _route(part, run, results)
            case Free():
                with CONTAINED:
                    last = await call(part.body, _arguments(part.takes, as_step(run, ""), results))
    return last


async def _node(bound: BoundNode, run: Run, results: Results) -> Any:
    own = as_step(run, bound.step_key)
    result = await step(own, bound.node, _arguments(bound.takes, own, results), uses=bound.uses)
    if isinstance(result, Stop):
        raise _Stopped(result.result)
    results[bound.step_key] = result
    return result


def _arguments(takes: Takes, run: Run, results: Results) -> list[Any]:
    """A name that is missing is one of a member that failed, in a `parallel` that collects: bound as `T | None`."""
    return [_argument(source, run, results) for source in takes]


def _argument(source: str | Taken | SettingsSlot, run: Run, results: Results) -> Any:
    match source:
        case SettingsSlot():
            return source.among(run._deps.clients.own_settings)
        case Taken():
            return source
        case _:
            return run if source == RUN else results.get(source)


async def _parallel(part: BoundParallel, run: Run, results: Results) -> list[Any]:
    works = [partial(_parts, member, run, results) for member in part.members]
    return await _side_by_side(works, part.at_once, part.collect)


async def _each(part: BoundEach, run: Run, results: Results) -> list[Any]:
    """One step an item, under a key of its own; what the items need besides is shared."""

    def one(index: int, item: Any) -> Work:
        own = replace(part.bound, step_key=f"{part.bound.step_key}[{index}]")
        return lambda: _node(own, run, {**results, ITEM: item})

    works = [one(index, item) for index, item in enumerate(results.get(part.items) or ())]
    outputs = await _side_by_side(works, part.at_once, part.collect)
    results[part.bound.step_key] = outputs
    return list(outputs)


async def _side_by_side(works: Sequence[Work], at_once: int, collect: bool) -> list[Any]:
    slots = asyncio.Semaphore(at_once)

    async def in_turn(work: Work) -> Any:
        async with slots:
            return await work()

    members = [partial(_or_none, work) for work in works] if collect else works
    starts = members if len(works) <= at_once else [partial(in_turn, member) for member in members]
    failure: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(start()) for start in starts]
    except BaseExceptionGroup as errors:
        failure = stale_in(errors) or _first(errors)
    if failure is not None:
        raise failure  # out here, so that it keeps its own cause
    with CONTAINED:  # a member that cancelled itself is no failure to its TaskGroup
        return [task.result() for task in tasks]


async def _or_none(work: Work) -> Any:
    """None where it failed by itself; what ends the attempt for all of the event, or the flow, goes on."""
    (output,) = await asyncio.gather(work(), return_exceptions=True)
    if isinstance(output, Stale) or (isinstance(output, Exception) and isinstance(deciding(output), ENDING)):
        raise output
    return None if isinstance(output, BaseException) else output  # CancelledError too: it cancelled itself


async def _route(part: BoundRoute, run: Run, results: Results) -> Any:
    label = await _node(part.router, run, results)
    chosen = label if label in part.branches else OTHERWISE
    branch = part.branches.get(label, part.otherwise)
    assert branch is not None, "the router's type has been held against the labels, and its result against its type"
    last = await _parts(branch, run, results)
    for name, producers in part.gives.items():
        results[name] = results.get(producers[chosen])
    return last


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """A node fails as itself, not as a group: the first failure is the one that cancelled the others. Where several
    came at once, one that is final decides, and an outage only where all are outages."""
    first, decides = errors.exceptions[0], deciding(errors)
    if isinstance(first, _Stopped):
        return first
    return next((error for error in errors.exceptions if any(leaf is decides for leaf in leaves(error))), decides)
