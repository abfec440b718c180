"""Nobody outside can be where a child event will be: such sources are refused; what got there before displaces none."""

import logging
from typing import Any

import pytest
from msgspec import json

from schemas import Event
from service.core.settings import Settings
from tests.board import Board, board_on
from tests.eventually import eventually
from tests.programs import program_of
from workers.kit import Pipeline, Run


class Order(Event, tag="order", frozen=True):
    n: int = 0


class Shipped(Event, tag="shipped", frozen=True):
    n: int = 0


async def announce(run: Run, event: Order) -> int:
    run.emit(Shipped(event.n))
    run.emit(Shipped(event.n + 1), key="k")
    return event.n


async def ship(event: Shipped) -> int:
    return event.n


async def react(event: Order) -> int:
    return event.n


ORDERS = Pipeline(on=Order, flow=[announce])
PIPELINES = {
    "orders": ORDERS,
    "audit": Pipeline(after=ORDERS, flow=[react]),
    "shipping": Pipeline(on=Shipped, flow=[ship]),
}
PARENT = "0197b2c4-5d3e-7c1a-9f60-3a52d7c81e44"
SOURCES = (f"/events/{PARENT}", "/events/", "/schedules/digest")


@pytest.mark.parametrize("source", SOURCES)
async def test_such_a_source_is_refused_at_every_door(source: str, settings: Settings) -> None:
    async with board_on(settings, program_of(settings, **PIPELINES)) as board:
        event = {"type": "shipped", "source": source, "id": "1/announce/1", "data": {"n": 1}}
        cloud = {**event, "specversion": "1.0"}
        kinds = ("application/json", "application/cloudevents+json")
        for kind, body in zip(kinds, (event, cloud), strict=True):
            answer = await board.http.post("/events", content=json.encode(body), headers={"Content-Type": kind})
            assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, "$.source")
        batches = {
            "application/json": json.encode([event]),
            "application/cloudevents-batch+json": json.encode([cloud]),
            "application/x-ndjson": json.encode(event) + b"\n",
        }
        for kind, content in batches.items():
            answer = await board.http.post("/events/batch", content=content, headers={"Content-Type": kind})
            (item,) = answer.json()["items"]
            assert (answer.status_code, item["error"]["status"]) == (207, 422)
            assert item["error"]["errors"][0]["path"] == "$.source"
        await board.redis.xadd("callboard:ingest", {"event": json.encode(event)})
        letter = await eventually(lambda: _letter(board))
        assert letter is not None
        assert (letter["reason"], letter["event_id"]) == ("invalid", None)
        assert "$.source" in letter["error"]["message"]
        assert not await board.sql("select 1 from events")


async def _letter(board: Board) -> dict[str, Any] | None:
    items = (await board.http.get("/dead-letters")).json()["items"]
    return items[0] if items else None


@pytest.mark.parametrize("source", ["/events", "/eventsource/x", "/here/events/x", "/schedule/x"])
async def test_what_only_looks_like_it_is_taken(source: str, settings: Settings) -> None:
    async with board_on(settings, program_of(settings, **PIPELINES)) as board:
        event = await board.ended(await board.send("shipped", {"n": 1}, source=source))
        assert (event["status"], event["source"]) == ("succeeded", source)


async def test_what_an_older_release_let_in_displaces_no_child(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with board_on(settings, program_of(settings, **PIPELINES), workers=0) as board:
        parent = await board.send("order", {"n": 7})
        forged = [await board.send("shipped", {"n": 99}, id=f"f-{n}") for n in range(3)]
        identities = ("1/announce/1", "1/announce/2", "1/after/audit")
        for event_id, own_id in zip(forged, identities, strict=True):
            await board.sql(
                "update events set source = $2, id = $3 where event_id = $1::uuid",
                event_id,
                f"/events/{parent}",
                own_id,
            )
        with caplog.at_level(logging.ERROR, "callboard.children"):
            async with board_on(settings, program_of(settings, **PIPELINES)) as running:
                assert (await running.ended(parent))["status"] == "succeeded"
                rows = await board.sql("select event_id from events where parent = $1::uuid", parent)
                results = [(await running.ended(str(row["event_id"]))) for row in rows]
                assert sorted((result["type"], result["result"]) for result in results) == [
                    ("order", 7),
                    ("shipped", 7),
                    ("shipped", 8),
                ]
                assert all(result["id"].endswith(f"/{result['event_id']}") for result in results)
                meters = running.workers[0].meters.snapshot()
                assert dict(meters["callboard_child_conflicts_total"]) == {("shipped",): [2.0], ("order",): [1.0]}
        told = [record.message for record in caplog.records if record.name == "callboard.children"]
        assert len(told) == 3
        assert all(f"child of event {parent}" in line for line in told)
        assert {(await board.ended(event_id))["result"] for event_id in forged} == {99}
