"""A worker may hold an event twice: under a claim that it lost without knowing it, and under a new one."""

import asyncio
from typing import Final

from schemas import Event
from service.core import streams
from service.core.settings import Settings
from tests.board import Board, board_on
from tests.eventually import eventually
from tests.programs import program_of
from tests.servers import NAMES
from workers.kit import Pipeline, Run

EVENTS: Final = 8  # a mapping that picks one of two claims at random is right for all of them once in 256 runs


class Held(Event, tag="held", frozen=True):
    pass


async def test_of_two_claims_of_an_event_the_lost_one_ends(settings: Settings) -> None:
    go_on, begun, cut = asyncio.Event(), set[tuple[str, int]](), set[int]()

    async def wait(run: Run, event: Held) -> None:
        begun.add((str(run.event_id), run._deps.claim))
        try:
            await go_on.wait()
        except asyncio.CancelledError:
            cut.add(run._deps.claim)
            raise

    program = program_of(settings, held=Pipeline(on=Held, flow=[wait]))
    async with board_on(settings, program) as board:
        (worker,) = board.workers
        ids = [await board.send("held", {}) for _ in range(EVENTS)]
        await eventually(lambda: _has(begun, EVENTS))
        async with worker.sweeper._alone:  # no turn of the sweeper sees it before both claims are in hand
            await _free(board)
            await eventually(lambda: _has(begun, 2 * EVENTS))
        await worker.sweeper.turn()
        await eventually(lambda: asyncio.sleep(0, worker.executor.in_flight == EVENTS))
        assert cut == {1}
        go_on.set()
        for event_id in ids:
            shown = await board.ended(event_id)
            assert shown["status"] == "succeeded"
            assert [row["claim"] for row in await _attempts(board, event_id)] == [2]


async def test_an_unknown_claim_of_an_event_that_is_held_under_an_older_one_is_handed_back(settings: Settings) -> None:
    go_on, claims = asyncio.Event(), list[int]()

    async def wait(run: Run, event: Held) -> None:
        claims.append(run._deps.claim)
        while run._deps.claim == 1 and not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue  # user code that does not let itself be ended

    async with board_on(settings, program_of(settings, held=Pipeline(on=Held, flow=[wait]))) as board:
        (worker,) = board.workers
        event_id = await board.send("held", {})
        await eventually(lambda: _has(claims, 1))
        # claimed once more, and the reply got lost
        await board.sql("update work set claim = claim + 1, claimed_at = claimed_at - interval '1 minute'")
        worker.sweeper._unknown_at = -60.0
        try:
            await worker.sweeper.turn()
            shown = await board.ended(event_id)
        finally:
            go_on.set()
        assert shown["status"] == "succeeded"
        assert claims == [1, 3]


async def _free(board: Board) -> None:
    """What a rescue does that takes the worker for dead, and the notification behind it."""
    rows = await board.sql("update work set status = 'queued', worker = null returning event_id")
    await streams.notify(board.redis, [row["event_id"] for row in rows], NAMES.front)


async def _has(found: set[tuple[str, int]] | list[int], count: int) -> bool:
    return len(found) == count


async def _attempts(board: Board, event_id: str) -> list[dict[str, int]]:
    return [dict(row) for row in await board.sql("select claim from attempts where event_id = $1::uuid", event_id)]
