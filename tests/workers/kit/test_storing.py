"""What has completed is stored before the outside is touched: together, in order, once, and within bounds."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

import pytest
from msgspec import Struct
from msgspec.structs import replace

from schemas import Event
from tests.workers.kit.runs import Memory, open_run, with_deps
from workers.compiler.binding import bind
from workers.compiler.plan import execute
from workers.kit import Run, each, parallel
from workers.kit.memory import KEPT_BYTES_MAX, KEPT_MAX, Kept, Stale
from workers.kit.run import as_step


class Job(Event, tag="job", frozen=True):
    n: int = 0


class First(Struct, frozen=True):
    n: int


class Left(Struct, frozen=True):
    n: int


class Right(Struct, frozen=True):
    n: int


class Slow(Memory):
    """A journal that stores when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()
        self.may = asyncio.Event()

    async def keep(self, event_id: UUID, run: int, claim: int, entries: Sequence[Kept]) -> None:
        self.begun.set()
        await self.may.wait()
        await super().keep(event_id, run, claim, entries)


@pytest.fixture
async def run() -> AsyncIterator[Run]:
    async with open_run() as opened:
        yield opened


@pytest.fixture(autouse=True)
def all_steps_are_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a step may take longer than a cheap one does, and would be stored as soon as it completes."""
    monkeypatch.setattr("workers.kit.run.CHEAP_MS", math.inf)


async def first(job: Job) -> First:
    return First(job.n)


async def _turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_nobody_touches_the_outside_while_another_still_stores(run: Run) -> None:
    """Two branches depend on the first step; both wait for the one statement that stores it."""
    slow, touched = Slow(), list[str]()

    async def left(run: Run, first: First) -> Left:
        await run.outside()
        touched.append("left")
        return Left(1)

    async def right(run: Run, first: First) -> Right:
        await run.outside()
        touched.append("right")
        return Right(1)

    flow = bind([first, parallel(left, right)], Job)
    running = asyncio.create_task(execute(flow, with_deps(run, keep=slow.keep), Job()))
    await slow.begun.wait()
    await _turns()
    assert touched == []
    slow.may.set()
    await running
    assert touched == ["left", "right"]
    assert slow.together[0] == ["first"]
    assert sorted(step for steps in slow.together for step in steps) == ["first", "left", "right"]


async def test_who_is_cancelled_while_it_stores_leaves_it_to_the_settle(run: Run) -> None:
    slow = Slow()

    async def touch(run: Run, first: First) -> None:
        await run.outside()

    one = with_deps(run, keep=slow.keep)
    running = asyncio.create_task(execute(bind([first, touch], Job), one, Job()))
    await slow.begun.wait()
    running.cancel()
    await asyncio.wait([running])
    assert [entry.step for entry in one._deps.facts.unstored] == ["first"]


async def test_nothing_is_stored_where_nothing_outside_is_touched(run: Run) -> None:
    memory = Memory()
    one = with_deps(run, keep=memory.keep)
    await execute(bind([first, first], Job), one, Job())
    assert (memory.together, [entry.step for entry in one._deps.facts.unstored]) == ([], ["first", "first#2"])


@pytest.mark.parametrize(("count", "size"), [(KEPT_MAX * 3, 1), (12, KEPT_BYTES_MAX // 5)])
async def test_what_waits_to_be_stored_has_a_bound(run: Run, count: int, size: int) -> None:
    async def many(job: Job) -> list[int]:
        return list(range(count))

    async def cheap(n: int) -> str:
        return "x" * size

    memory = Memory()
    one = with_deps(run, keep=memory.keep, settings=replace(run._deps.settings, result_max=2 * KEPT_BYTES_MAX))
    await execute(bind([many, each(cheap)], Job), one, Job())
    assert memory.together, "all of it waited"
    assert max(map(len, memory.together)) <= KEPT_MAX
    assert sum(len(entry.entry) for entry in one._deps.facts.unstored) == one._deps.facts.kept_bytes < KEPT_BYTES_MAX


async def test_a_step_behind_an_outside_touch_of_the_body_is_stored_at_once(run: Run) -> None:
    memory = Memory()
    body = as_step(with_deps(run, keep=memory.keep), "")
    await body.step(first, Job(1))
    assert memory.together == []
    await body.outside()
    await body.step(first, Job(2))
    assert [len(steps) for steps in memory.together] == [1, 1]


async def test_a_step_that_outlives_the_step_around_it_changes_nothing(run: Run) -> None:
    go_on, left = asyncio.Event(), list[asyncio.Task[First]]()

    async def inner(run: Run, job: Job) -> First:
        run.vectors.upsert("notes", "1", "text")
        await go_on.wait()
        return First(1)

    async def outer(run: Run, job: Job) -> First:
        left.append(asyncio.create_task(run.step(inner, job)))
        await _turns()
        return First(2)

    assert await execute(bind([outer], Job), run, Job()) == First(2)
    go_on.set()
    with pytest.raises(Stale):
        await left[0]
    assert (run._deps.facts.documents, [entry.step for entry in run._deps.facts.unstored]) == ([], ["outer"])
