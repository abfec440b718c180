"""Order, mutual exclusion and progress under random keys, retries and lost workers."""

import asyncio
from typing import Any

from hypothesis import HealthCheck, given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from msgspec import Struct

from schemas import Event
from service.settings import Settings
from tests.board import Board, board_on
from tests.programs import program_of
from workers.kit import Pipeline, Retry, Run

WORKERS = 3


class Move(Event, tag="move", frozen=True):
    n: int
    fails: int = 0
    crash: bool = False


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

    async def move(self, run: Run, event: Move) -> Done:
        key = run.key or f"none-{event.n}"
        running = self.running.setdefault(key, set())
        if running:
            self.overlaps.append((key, running | {event.n}))
        running.add(event.n)
        try:
            await asyncio.sleep(0.001)
            if event.crash and (key, event.n) not in self.crashed:
                self.crashed.add((key, event.n))
                await self.lose_my_worker(run)
            if run.attempt <= event.fails:
                raise ValueError("not yet")
            self.finished.setdefault(key, []).append(event.n)
            return Done(event.n)
        finally:
            running.discard(event.n)

    async def lose_my_worker(self, run: Run) -> None:
        """The worker that runs this event stops dead, and its lease has run out: all that it held goes on elsewhere."""
        assert self.board is not None
        (row,) = await self.board.sql("select worker from work where event_id = $1", run.event_id)
        mine = next(each for each in self.board.workers if each.lease.worker == row["worker"])
        dead = "update workers set state = 'dead', lease_until = '-infinity' where worker = $1"
        await self.board.sql(dead, row["worker"])
        mine.executor.drop_all()
        await asyncio.sleep(60)


EVENTS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", None]), st.integers(0, 2), st.booleans()), min_size=5, max_size=40
)


@given(schedule=EVENTS)
@example_settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
async def test_order_exclusion_and_progress(settings: Settings, schedule: list[tuple[str | None, int, bool]]) -> None:
    watch = Watch()

    async def move(run: Run, event: Move) -> Done:
        return await watch.move(run, event)

    quick = Retry(attempts=4, base_s=0.02, cap_s=0.1)
    program = program_of(settings, move=Pipeline(on=Move, flow=[move], retry=quick))
    async with board_on(settings, program, workers=WORKERS) as board:
        watch.board = board
        sent: list[tuple[str | None, int, str]] = []
        for n, (key, fails, wish) in enumerate(schedule):
            crash = wish and n % 7 == 0  # few enough that the runs stay short
            named: dict[str, Any] = {"partitionkey": key} if key else {}
            event_id = await board.send("move", {"n": n, "fails": fails, "crash": crash}, **named)
            sent.append((key, n, event_id))
        for _, _, event_id in sent:
            event = await board.ended(event_id, 60)
            assert event["status"] == "succeeded", event["error"]
    assert watch.overlaps == []
    for key in {key for key, _, _ in sent if key}:
        assert watch.finished[key] == [n for other, n, _ in sent if other == key]
