"""Time that a run spends waiting for our own stores is none of the user's: nobody is charged for it."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from schemas import Event
from service.core.settings import Settings
from service.embedded import Server
from tests.board import board_on
from tests.eventually import eventually
from tests.processes import descendants
from tests.programs import program_of
from workers.engine.settle import Settler
from workers.kit import Pipeline, Retry, Run

STANDS_S = 12.0
LIMIT_S = 5.0
EVENTS = 4


class Poked(Event, tag="poked", frozen=True):
    pass


@contextmanager
def standing_still(server: Server) -> Iterator[None]:
    """SIGSTOP for the server and each of its processes: connections stay, nothing is answered."""
    pids = {server.pid, *descendants(server.pid)}
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def test_a_postgres_that_stands_still_charges_nobody(settings: Settings, servers: tuple[Server, Server]) -> None:
    """C1: for 12 s, with events in a step that have 5 s. (12 s, since the case is made of the two times.)"""
    loop, begun, go_on = asyncio.get_running_loop(), list[float](), asyncio.Event()

    async def one(run: Run, event: Poked) -> str:
        begun.append(loop.time())
        await go_on.wait()
        await asyncio.sleep(0.02)  # more than what a cheap step may take: it is journaled
        return "one"

    async def two(event: Poked, one: str) -> int:
        await asyncio.sleep(0.02)
        return 2

    poked = Pipeline(on=Poked, flow=[one, two], timeout_s=LIMIT_S, limits_s={one: LIMIT_S}, retry=Retry(attempts=1))
    async with board_on(settings, program_of(settings, poked=poked)) as board:
        sent = [await board.send("poked", {}) for _ in range(EVENTS)]
        await eventually(lambda: _true(len(begun) == EVENTS))
        with standing_still(servers[0]):
            go_on.set()
            await asyncio.sleep(STANDS_S)
        for event_id in sent:
            event = await board.ended(event_id, 30)
            assert (event["status"], event["attempts"]) == ("succeeded", 1), event["error"]
        assert {row["outcome"] for row in await board.sql("select outcome from attempts")} == {"succeeded"}


async def test_the_sweep_of_what_is_overdue_leaves_out_what_we_kept_waiting(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forced: a run whose ending could not be stored in time is past its deadline in Postgres; its worker says why."""
    settle, stored = Settler.settle, asyncio.Event()

    async def settled(self: Settler, ending: object, timeout_s: float) -> bool:
        await stored.wait()
        return await settle(self, ending, timeout_s)  # type: ignore[arg-type]

    async def one(event: Poked) -> str:
        return "one"

    monkeypatch.setattr(Settler, "settle", settled)
    poked = Pipeline(on=Poked, flow=[one], timeout_s=LIMIT_S)
    async with board_on(settings, program_of(settings, poked=poked)) as board:
        (worker,) = board.workers
        await eventually(lambda: _true(worker.lease.steady))
        event_id = await board.send("poked", {})
        await eventually(lambda: _true(worker.executor.in_flight == 1 and not worker.executor.claims()))
        (running,) = worker.executor._held
        running.ended_at -= 3600  # as after an hour without Postgres
        await board.sql("update work set deadline_at = deadline_at - interval '1 hour'")
        for _ in range(3):
            await worker.sweeper.turn()
        stored.set()
        event = await board.ended(event_id)
        assert (event["status"], event["attempts"]) == ("succeeded", 1)
        assert [moment["what"] for moment in event["timeline"]].count("retry") == 0


async def test_a_run_that_is_late_by_itself_is_taken_away(settings: Settings) -> None:
    """The same sweep, where nobody kept it waiting."""
    go_on = asyncio.Event()

    async def one(event: Poked) -> str:
        await go_on.wait()
        return "one"

    poked = Pipeline(on=Poked, flow=[one], timeout_s=3600, retry=Retry(attempts=1))
    async with board_on(settings, program_of(settings, poked=poked)) as board:
        event_id = await board.send("poked", {})
        (worker,) = board.workers
        await eventually(lambda: _true(worker.executor.in_flight == 1))
        await board.sql("update work set deadline_at = now() - interval '1 hour'")
        event = await board.ended(event_id, 15)
        go_on.set()
        assert (event["status"], event["error"]["kind"]) == ("dead", "deadline")


async def _true(fact: bool) -> bool:
    return fact
