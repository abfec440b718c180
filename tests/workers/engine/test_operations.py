"""Cancel, replay, dead letters: what an operator does, and what doing it twice does."""

import asyncio

import httpx
import pytest
from msgspec import Struct

from schemas import Event
from service.core.settings import Settings
from service.operations import operate
from tests.board import Board, board_on
from tests.eventually import eventually
from tests.programs import program_of
from workers.kit import Pipeline, Reject, Run


class Told(Event, tag="told", frozen=True):
    what: str = "fine"


class Answer(Struct, frozen=True):
    run: int


class Stage:
    """What the test and the node share."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.ended = asyncio.Event()
        self.mended = False
        self.ran: list[str] = []

    async def node(self, run: Run, event: Told) -> Answer:
        if event.what == "wait":
            self.entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.ended.set()
        if event.what == "dead" and not self.mended:
            raise Reject("not yet mended")
        self.ran.append(str(run.event_id))
        return Answer(run.number)


async def on_stage(settings: Settings) -> tuple[Stage, object]:
    stage = Stage()

    async def act(run: Run, event: Told) -> Answer:
        return await stage.node(run, event)

    return stage, program_of(settings, told=Pipeline(on=Told, flow=[act]))


async def test_cancel_ends_the_coroutine_within_a_second(settings: Settings) -> None:
    stage, program = await on_stage(settings)
    async with board_on(settings, program) as board:  # type: ignore[arg-type]
        event_id = await board.send("told", {"what": "wait"})
        async with asyncio.timeout(10):
            await stage.entered.wait()
        response = await board.http.post(f"/events/{event_id}/cancel")
        assert (response.status_code, response.json()) == (202, {"event_id": event_id, "status": "cancelled"})
        async with asyncio.timeout(1):
            await stage.ended.wait()
        event = await board.show(event_id)
        assert (event["status"], event["attempts"]) == ("cancelled", 0)
        assert event["timeline"][-1]["what"] == "cancelled"
        assert (await board.http.post(f"/events/{event_id}/cancel")).status_code == 409
        await eventually(lambda: _empty_handed(board))


async def test_cancel_reaches_a_worker_without_redis_too(settings: Settings) -> None:
    stage, program = await on_stage(settings)
    async with board_on(settings, program) as board:  # type: ignore[arg-type]
        event_id = await board.send("told", {"what": "wait"})
        async with asyncio.timeout(10):
            await stage.entered.wait()
        # As the API's statement leaves it, and nobody is told.
        await board.sql("delete from work")
        await board.sql("update events set status = 'cancelled', claim = claim + 1")
        async with asyncio.timeout(2):
            await stage.ended.wait()
        assert (await board.show(event_id))["status"] == "cancelled"


async def _empty_handed(board: Board) -> bool:
    return not board.workers[0].executor.in_flight


async def test_cancel_what_waits(settings: Settings) -> None:
    _, program = await on_stage(settings)
    async with board_on(settings, program) as board:  # type: ignore[arg-type]
        event_id = await board.send("told", {}, dueat="2099-01-01T00:00:00Z")
        assert (await board.http.post(f"/events/{event_id}/cancel")).status_code == 202
        assert (await board.show(event_id))["status"] == "cancelled"
        missing = "01a205b4-027c-75ab-a765-9c3495c19744"
        assert (await board.http.post(f"/events/{missing}/cancel")).status_code == 404


async def test_replay_is_a_new_run_of_the_same_event(settings: Settings) -> None:
    stage, program = await on_stage(settings)
    async with board_on(settings, program) as board:  # type: ignore[arg-type]
        event_id = await board.send("told", {"what": "dead"}, partitionkey="k")
        assert (await board.ended(event_id))["status"] == "dead"
        stage.mended = True
        response = await board.http.post(f"/events/{event_id}/replay", json={"from": None})
        assert (response.status_code, response.json()) == (202, {"event_id": event_id, "run": 2, "status": "queued"})
        event = await board.ended(event_id)
        assert (event["status"], event["run"], event["attempts"], event["result"]) == ("succeeded", 2, 1, {"run": 2})
        assert "replayed" in [moment["what"] for moment in event["timeline"]]
        assert (await board.http.get("/dead-letters")).json()["items"] == []
        (kept,) = await board.sql("select run, status from runs")
        assert tuple(kept) == (1, "dead")


async def test_two_replays_at_once_are_one(settings: Settings) -> None:
    stage, program = await on_stage(settings)
    async with board_on(settings, program) as board:  # type: ignore[arg-type]
        event_id = await board.send("told", {"what": "dead"})
        await board.ended(event_id)
        stage.mended = True
        answers = await asyncio.gather(*(board.http.post(f"/events/{event_id}/replay") for _ in range(5)))
        again = await board.ended(event_id)
        replayed = [answer for answer in answers if answer.status_code == 202]
        assert again["run"] == 1 + len(replayed)
        assert len({answer.json()["run"] for answer in replayed}) == len(replayed)


async def test_dead_letters_are_replayed_and_discarded_by_filter(settings: Settings) -> None:
    stage, program = await on_stage(settings)
    async with board_on(settings, program) as board:  # type: ignore[arg-type]
        for _ in range(5):
            await board.ended(await board.send("told", {"what": "dead"}))
        await board.redis.xadd("callboard:ingest", {"event": b"no json"})
        await eventually(lambda: _letters(board, 6))

        assert (await _bulk(board, "POST", {})).status_code == 400
        by_query = await board.http.delete("/dead-letters?reason=rejected&dry_run=true")
        assert by_query.json() == {"matched": 5, "done": 0}
        body = {"reason": "rejected"}  # and in the query what would be overlooked
        assert (await board.http.request("DELETE", "/dead-letters?dry_run=true", json=body)).status_code == 400
        dry = (await _bulk(board, "POST", {"reason": "rejected", "dry_run": True})).json()
        assert dry == {"matched": 5, "done": 0}
        stage.mended = True
        assert (await _bulk(board, "POST", {"reason": "rejected"})).json() == {"matched": 5, "done": 5}
        assert (await _bulk(board, "POST", {"reason": "rejected"})).json() == {"matched": 0, "done": 0}
        (left,) = (await board.http.get("/dead-letters")).json()["items"]
        assert (left["reason"], left["event"], left["event_id"]) == ("invalid", "no json", None)
        gone = await board.http.request("DELETE", "/dead-letters", json={"ids": [left["dead_id"]]})
        assert gone.json() == {"matched": 1, "done": 1}
        assert (await board.http.get("/dead-letters")).json()["items"] == []


async def test_dead_letters_of_a_key_are_replayed_in_their_order(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every batch and from one to the next. What dies again meanwhile is not replayed for ever."""
    monkeypatch.setattr(operate, "BATCH", 2)
    stage, program = await on_stage(settings)
    async with board_on(settings, program) as board:  # type: ignore[arg-type]
        sent = [await board.send("told", {"what": "dead"}, partitionkey="k") for _ in range(7)]
        await eventually(lambda: _letters(board, 7))
        again = (await _bulk(board, "POST", {"type": "told"})).json()
        assert again == {"matched": 7, "done": 7}
        await eventually(lambda: _letters(board, 7))
        stage.mended = True
        assert (await _bulk(board, "POST", {"type": "told"})).json()["done"] == 7
        assert [(await board.ended(each))["run"] for each in sent] == [3] * 7
        assert stage.ran == sent


async def _bulk(board: Board, method: str, body: dict[str, object]) -> httpx.Response:
    return await board.http.request(method, "/dead-letters/replay", json=body)


async def _letters(board: Board, count: int) -> bool:
    return len((await board.http.get("/dead-letters")).json()["items"]) == count
