"""What is still under way of an event that is forgotten writes nothing of it any more, and is paid for all the same."""

import asyncio
from pathlib import Path

import pytest
from starlette.responses import Response

from schemas import Event
from service.core.settings import Settings
from tests.board import Board
from tests.eventually import eventually
from tests.workers.engine.paying import COST_USD, Provider, open_shop, said
from workers.kit import Pipeline, Run

MARK = "erika.mustermann@example.org"


class Job(Event, tag="job", frozen=True):
    pass


async def ask(run: Run, event: Job) -> str:
    return await run.llm.ask("say", returns=str, text="hello")


def held(provider: Provider) -> asyncio.Event:
    go_on = asyncio.Event()

    async def answer() -> Response:
        await go_on.wait()
        return said(MARK)

    provider.answer = answer
    return go_on


async def rows(board: Board, *tables: str) -> list[int]:
    return [(await board.sql(f"select count(*) from {table}"))[0][0] for table in tables]


async def test_a_call_that_is_paid_for_is_booked_before_its_event_goes(settings: Settings, tmp_path: Path) -> None:
    async with open_shop(settings, tmp_path, Pipeline(on=Job, flow=[ask])) as (board, provider):
        go_on = held(provider)
        await board.send("job", {}, partitionkey=MARK)
        await eventually(lambda: asyncio.sleep(0, provider.asked == 1))
        forgetting = asyncio.create_task(board.http.post("/forget", json={"key": MARK}))

        async def stopped() -> bool:
            return await rows(board, "work", "calls") == [0, 1]

        assert await eventually(stopped)
        go_on.set()
        answer = (await forgetting).json()
        assert (answer["found"]["events"], answer["found"]["calls"], answer["left"]) == (1, 1, {})
        assert await rows(board, "events", "attempts", "calls", "journal") == [0, 0, 0, 0]
        (used,) = await board.sql("select used_usd from allowances")
        assert used["used_usd"] == pytest.approx(COST_USD)


async def test_a_worker_that_did_not_hear_of_it_writes_nothing(settings: Settings, tmp_path: Path) -> None:
    """As one that was frozen while the event went."""
    async with open_shop(settings, tmp_path, Pipeline(on=Job, flow=[ask])) as (board, provider):
        (worker,) = board.workers
        go_on = held(provider)
        await board.send("job", {}, partitionkey=MARK)
        await eventually(lambda: asyncio.sleep(0, provider.asked == 1))
        async with worker.sweeper._alone:  # no turn of the sweeper tells it
            for table in ("work", "events", "attempts", "calls"):
                await board.sql(f"delete from {table}")
            go_on.set()

            async def idle() -> bool:
                return worker.executor.in_flight == 0

            assert await eventually(idle)
        assert await rows(board, "events", "attempts", "calls", "journal") == [0, 0, 0, 0]
