"""GET /events: filters, bounds, and a cursor that walks everything exactly once."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from msgspec import json

import schemas.events
from schemas import Event
from schemas.catalog import discover
from schemas.envelope import read
from service.core.settings import Settings
from service.intake.store import Store
from tests.board import Board, board_on
from tests.programs import program_of
from workers.kit import Pipeline, Run

PAGE_MAX = 500


async def post(api: httpx.AsyncClient, **attributes: Any) -> str:
    event = {"type": "message.labelled", "data": {"text": "a", "label": "b"}, **attributes}
    response = await api.post("/events", json=event)
    assert response.status_code == 202, response.text
    return str(response.json()["event_id"])


async def ids(api: httpx.AsyncClient, **asked: Any) -> list[str]:
    response = await api.get("/events", params=asked)
    assert response.status_code == 200, response.text
    return [item["event_id"] for item in response.json()["items"]]


async def test_filters(api: httpx.AsyncClient) -> None:
    ticket = {"type": "ticket.opened", "data": {"ticket_id": "T", "subject": "s", "body": "b"}}
    begun = datetime.now(UTC) - timedelta(milliseconds=1)
    first = await post(api, source="/a", id="1")
    second = await post(api, source="/a", id="2", partitionkey="k")
    third = await post(api, source="/b", id="1", **ticket)
    fourth = await post(api, source="/b", id="2", dueat="2100-01-01T00:00:00Z")
    done = datetime.now(UTC) + timedelta(milliseconds=1)

    assert await ids(api) == [fourth, third, second, first]
    assert await ids(api, type="ticket.opened") == [third]
    assert await ids(api, status="scheduled") == [fourth]
    assert await ids(api, status="queued") == [third, second, first]
    assert await ids(api, key="k") == [second]
    assert await ids(api, source="/a") == [second, first]
    assert await ids(api, source="/b", id="1") == [third]
    assert await ids(api, source="/b", key="k") == []
    assert await ids(api, since=begun.isoformat(), until=done.isoformat()) == [fourth, third, second, first]
    assert await ids(api, since=done.isoformat()) == await ids(api, until=begun.isoformat()) == []


class Split(Event, tag="split", frozen=True):
    pieces: int


class Piece(Event, tag="piece", frozen=True):
    n: int


async def split(run: Run, event: Split) -> None:
    for n in range(event.pieces):
        run.emit(Piece(n))


async def piece(event: Piece) -> int:
    return event.n


async def test_the_children_of_an_event_are_listed(settings: Settings) -> None:
    splitting = program_of(
        settings, splitting=Pipeline(on=Split, flow=[split]), piecing=Pipeline(on=Piece, flow=[piece])
    )
    async with board_on(settings, splitting) as board:
        few, many = [await board.send("split", {"pieces": count}) for count in (3, 25)]
        await board.ended(few)
        await board.ended(many)
        children = await ids(board.http, parent=few)
        assert len(children) == 3
        assert len(await ids(board.http, parent=many, limit=500)) == 25
        assert await ids(board.http, parent=children[0]) == []
        assert (await board.show(children[0]))["parent"] == few
        assert await ids(board.http, parent=few, type="split") == []
        page = (await board.http.get("/events", params={"parent": few, "limit": 2})).json()
        rest = await ids(board.http, parent=few, cursor=page["next"])
        assert [item["event_id"] for item in page["items"]] + rest == children
        assert (await board.http.get("/events?parent=x")).status_code == 400

        shown = (await board.http.get(f"/ui/events/{few}")).text
        assert [shown.count(f'href="/ui/events/{child}"') for child in children] == [1, 1, 1]
        assert "/?parent=" not in shown
        shown = (await board.http.get(f"/ui/events/{many}")).text
        assert len(re.findall(r'href="/ui/events/[^"]+">piece<', shown)) == 20
        assert f'href="/?parent={many}"' in shown
        listed = (await board.http.get(f"/?parent={many}")).text
        assert len(re.findall(r'href="/ui/events/[^"]+">piece<', listed)) == 25
        assert "Children" not in (await board.http.get(f"/ui/events/{children[0]}")).text


async def test_an_item_tells_how_the_event_stands(board: Board) -> None:
    event_id = await board.send("message.labelled", {"text": "a", "label": "b"}, subject="s", someext="kept")
    shown = await board.ended(event_id)
    (item,) = (await board.http.get("/events")).json()["items"]
    assert set(item) == set(shown) - {"data", "result", "timeline"}
    assert item == {name: shown[name] for name in item}


async def test_the_cursor_walks_everything_exactly_once(api: httpx.AsyncClient) -> None:
    sent = [await post(api, source="/walk") for _ in range(23)]
    for limit in (1, 7, 23, 24):
        walked: list[str] = []
        cursor: str | None = None
        for _ in range(30):
            asked = {"limit": str(limit), "source": "/walk"} | ({"cursor": cursor} if cursor else {})
            page = (await api.get("/events", params=asked)).json()
            walked += [item["event_id"] for item in page["items"]]
            cursor = page["next"]
            if cursor is None:
                break
            await post(api, source="/later")  # what comes meanwhile moves no page
        assert walked == sent[::-1], limit


async def test_a_page_has_fifty_items_unless_asked_otherwise(api: httpx.AsyncClient, settings: Settings) -> None:
    catalog = discover(schemas.events)
    body = json.encode({"type": "message.labelled", "data": {"text": "a", "label": "b"}})
    store = Store(settings, catalog)
    writing = asyncio.create_task(store.run())
    await asyncio.gather(*(store.accept(read(body, catalog, source="/many")) for _ in range(600)))
    writing.cancel()
    assert len(await ids(api)) == 50
    page = await ids(api, limit=PAGE_MAX)
    assert len(page) == PAGE_MAX
    assert page == sorted(page, reverse=True)
