"""The lease, where the loop and the heartbeat's thread know different things."""

import asyncio
from uuid import uuid4

from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from schemas import Event
from service.core.settings import Settings
from tests.board import board_on
from tests.eventually import eventually
from tests.listening import listening_on
from tests.programs import program_of
from workers.engine.executor import Executor
from workers.kit import Pipeline, Run


class Poked(Event, tag="poked", frozen=True):
    pass


class One(Struct, frozen=True):
    pass


class Two(Struct, frozen=True):
    pass


async def test_nothing_starts_under_a_claim_of_an_earlier_registration(settings: Settings) -> None:
    """Forced: the heartbeat has registered anew, and the loop has not heard yet that the old lease is lost."""
    begun, go_on, seconds = asyncio.Event(), asyncio.Event(), []

    async def one(event: Poked) -> One:
        begun.set()
        await go_on.wait()
        return One()

    async def two(event: Poked, first: One) -> Two:
        seconds.append(first)
        return Two()

    async with board_on(settings, program_of(settings, poked=Pipeline(on=Poked, flow=[one, two]))) as board:
        (worker,) = board.workers
        event_id = await board.send("poked", {})
        await begun.wait()
        mine, worker.lease.worker = worker.lease.worker, uuid4()
        go_on.set()
        await eventually(lambda: _none(worker.executor))
        assert not seconds, "a step began under a claim that is somebody else's"
        worker.lease.worker = mine
        assert (await board.ended(event_id, 30))["status"] == "succeeded", "handed back, and run again"


async def test_nothing_is_posted_under_a_claim_of_an_earlier_registration(settings: Settings) -> None:
    """The same in the middle of a step: it does not reach the outside any more."""
    begun, go_on, posts = asyncio.Event(), asyncio.Event(), list[str]()

    async def told(request: Request) -> Response:
        posts.append(request.headers["idempotency-key"])
        return Response()

    async with listening_on(Starlette(routes=[Route("/", told, methods=["POST"])]), lifespan="off") as url:

        async def one(run: Run, event: Poked) -> One:
            begun.set()
            await go_on.wait()
            await run.web.post(url, {})
            return One()

        async with board_on(settings, program_of(settings, poked=Pipeline(on=Poked, flow=[one]))) as board:
            (worker,) = board.workers
            await board.send("poked", {})
            await begun.wait()
            worker.lease.worker = uuid4()
            go_on.set()
            await eventually(lambda: _none(worker.executor))
    assert posts == []


async def _none(executor: Executor) -> bool:
    return executor.in_flight == 0
