"""Order, mutual exclusion, progress, state and children under random keys, retries and lost workers."""

import asyncio
from functools import reduce
from typing import Any

from hypothesis import HealthCheck, given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from msgspec import Struct

from schemas import Event
from service.core.settings import Settings
from tests.board import ENDED, Board, board_on
from tests.eventually import eventually
from tests.programs import program_of
from workers.kit import Pipeline, Retry, Run, State
from workers.kit.run import CHEAP_MS

WORKERS = 3
CHILD = 1000
SLOW_S = CHEAP_MS * 1.2 / 1000
# The places in the mailboxes, which are gone with the work.
PLACES = (
    "create table if not exists places (event_id uuid, ord bigint)",
    """create or replace function placed() returns trigger language plpgsql security definer as
       'begin insert into places values (new.event_id, new.mailbox_seq); return null; end'""",
    "create or replace trigger placed after insert on work for each row execute function placed()",
    "truncate places, events, work, states, journal, attempts",  # one database for all examples
)


class Move(Event, tag="move", frozen=True):
    """`says`: the key of a child. It fails or crashes in the step that sets the state, or in the one behind it."""

    n: int
    fails: int = 0
    crash: bool = False
    late: bool = False
    says: str | None = None


class Loose(Event, tag="loose", frozen=True):
    """Without a key."""

    n: int
    fails: int = 0
    crash: bool = False


class Track(Struct, frozen=True):
    """Another order gives another sum."""

    total: int = 0
    moves: int = 0

    def moved(self, n: int) -> "Track":
        return Track((self.total * 31 + n) % 1_000_003, self.moves + 1)


class Moved(Struct, frozen=True):
    n: int


class Done(Struct, frozen=True):
    n: int


class Watch:
    """What really ran: overlaps by key, and the order in which the events of a key ended."""

    def __init__(self) -> None:
        self.board: Board | None = None
        self.running: dict[str, set[int]] = {}
        self.finished: dict[str, list[int]] = {}
        self.overlaps: list[tuple[str, set[int]]] = []
        self.crashed: set[tuple[str, int]] = set()

    async def step(self, run: Run, n: int, fails: int, crash: bool) -> None:
        key = run.key or f"none-{n}"
        running = self.running.setdefault(key, set())
        if running:
            self.overlaps.append((key, running | {n}))
        running.add(n)
        try:
            await asyncio.sleep(SLOW_S if n % 2 else 0.001)  # so that it is stored at once, or rides in the settle
            if crash and (key, n) not in self.crashed:
                self.crashed.add((key, n))
                await self.lose_my_worker(run)
            if run.attempt <= fails:
                raise ValueError("not yet")
        finally:
            running.discard(n)

    async def lose_my_worker(self, run: Run) -> None:
        """The worker that runs this event stops dead, and its lease has run out: all that it held goes on elsewhere."""
        assert self.board is not None
        (row,) = await self.board.sql("select worker from work where event_id = $1", run.event_id)
        mine = next(worker for worker in self.board.workers if worker.lease.worker == row["worker"])
        dead = "update workers set state = 'dead', lease_until = '-infinity' where worker = $1"
        await self.board.sql(dead, row["worker"])
        mine.executor.drop_all()
        await asyncio.sleep(60)


KEYS = ["a", "b", "c"]
EVENTS = st.lists(
    st.tuples(
        st.sampled_from([*KEYS, None]),
        st.integers(0, 2),
        st.booleans(),
        st.booleans(),
        st.sampled_from([*KEYS, None, None]),
    ),
    min_size=5,
    max_size=40,
)
Schedule = list[tuple[str | None, int, bool, bool, str | None]]


@given(schedule=EVENTS)
@example_settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
async def test_order_exclusion_progress_state_and_children(settings: Settings, schedule: Schedule) -> None:
    watch = Watch()

    async def move(run: Run, event: Move, state: State[Track]) -> Moved:
        if event.says:
            run.emit(Move(CHILD + event.n), key=event.says)
        state.set(state.value.moved(event.n))
        await watch.step(run, event.n, 0 if event.late else event.fails, event.crash and not event.late)
        return Moved(event.n)

    async def finish(run: Run, event: Move, moved: Moved, state: State[Track]) -> Done:
        await watch.step(run, event.n, event.fails if event.late else 0, event.crash and event.late)
        watch.finished.setdefault(run.key or "", []).append(event.n)
        return Done(state.value.total)

    async def loose(run: Run, event: Loose) -> Done:
        await watch.step(run, event.n, event.fails, event.crash)
        return Done(event.n)

    quick = Retry(attempts=4, base_s=0.02, cap_s=0.1)
    pipelines = {
        "move": Pipeline(on=Move, flow=[move, finish], retry=quick),
        "loose": Pipeline(on=Loose, flow=[loose], retry=quick),
    }
    async with board_on(settings, program_of(settings, **pipelines), workers=WORKERS) as board:
        watch.board = board
        for statement in PLACES:
            await board.sql(statement)
        await _send(board, schedule)
        said = sum(says is not None for key, *_, says in schedule if key)
        await eventually(lambda: _all_ended(board, len(schedule) + said), 90)
        await _judge(board, schedule, watch)


async def _send(board: Board, schedule: Schedule) -> None:
    for n, (key, fails, wish, late, says) in enumerate(schedule):
        crash = wish and n % 7 == 0  # few enough that the runs stay short
        data: dict[str, Any] = {"n": n, "fails": fails, "crash": crash}
        if key is None:
            await board.send("loose", data)
        else:
            await board.send("move", {**data, "late": late, "says": says}, partitionkey=key)


async def _all_ended(board: Board, count: int) -> bool:
    rows = await board.sql("select status, error from events")
    assert all(row["status"] in ("open", "succeeded") for row in rows), rows
    return len(rows) == count and all(row["status"] in ENDED for row in rows)


async def _judge(board: Board, schedule: Schedule, watch: Watch) -> None:
    assert watch.overlaps == []
    rows = await board.sql(
        "select partitionkey, (data ->> 'n')::integer as n, parent from events join places using (event_id)"
        " where partitionkey is not null order by ord"
    )
    lost = await board.sql(
        "select (data ->> 'n')::integer as n from attempts join events using (event_id) where outcome = 'lost'"
    )
    again = {row["n"] for row in lost}  # a worker may be lost between an event's end and its word of it
    children = sorted(row["n"] for row in rows if row["parent"] is not None)
    assert children == [CHILD + n for n, (key, *_, says) in enumerate(schedule) if key and says]
    for key in KEYS:
        placed = [row["n"] for row in rows if row["partitionkey"] == key]
        assert [n for n in placed if n < CHILD] == [n for n, (other, *_) in enumerate(schedule) if other == key]
        finished = watch.finished.get(key, [])
        twice = zip(finished, [None, *finished], strict=False)
        assert [n for n, before in twice if n != before or n not in again] == placed
        states = (await board.http.get(f"/actors/{key}")).json()["states"]
        alone = reduce(Track.moved, placed, Track())
        assert states == ({"Track": {"total": alone.total, "moves": alone.moves}} if placed else {})
