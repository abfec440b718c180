"""Bodies in hand are bounded: what there is no room for is told to come again, and nothing of it is kept."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from msgspec import json

from service.http import app
from service.http.door import Room
from service.settings import Settings
from tests.board import serving
from tests.eventually import eventually

EVENT = json.encode({"type": "message.labelled", "data": {"text": "a" * 5_000, "label": "b"}})
MEDIA = {"Content-Type": "application/json"}


@pytest.mark.parametrize("sized", [True, False], ids=["content-length", "chunked"])
async def test_what_there_is_no_room_for_comes_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, *, sized: bool
) -> None:
    room = Room(len(EVENT) * 3 // 2)
    monkeypatch.setattr(app, "Room", lambda: room)
    go_on = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield EVENT[:4_000]
        await go_on.wait()
        yield EVENT[4_000:]

    async def half() -> bool:
        return room._held >= 4_000

    headers = MEDIA | ({"Content-Length": str(len(EVENT))} if sized else {})
    async with serving(settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as http:
        first = asyncio.create_task(http.post("/events", content=slowly(), headers=headers))
        await eventually(half)
        for _ in range(2):
            refused = await http.post("/events", content=EVENT, headers=MEDIA)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert "more bodies in hand" in refused.json()["detail"]
        go_on.set()
        assert (await first).status_code == 202
        assert (await http.post("/events", content=EVENT, headers=MEDIA)).status_code == 202
        assert room._held == 0


async def test_whoever_reads_a_body_lets_it_go(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The form of the page too, and requests that fail."""
    room = Room()
    monkeypatch.setattr(app, "Room", lambda: room)
    async with serving(settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as http:
        for path, body in (
            ("/login", {"data": {"key": "none"}}),
            ("/events", {"json": {}}),
            ("/nowhere", {"json": {}}),
        ):
            await http.post(path, **body)
    assert room._held == 0


async def test_a_body_that_is_alone_has_room(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "Room", lambda: Room(10))
    async with serving(settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as http:
        assert (await http.post("/events", content=EVENT, headers=MEDIA)).status_code == 202
