"""Bodies in hand are bounded: what there is no room for is told to come again, and nothing of it is kept."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import json

from service.core.settings import Settings
from service.http import app
from service.http.body_allowance import BODY_SMALL, BodyAllowance, Shares
from tests.board import serving
from tests.eventually import eventually
from tests.keys import AT_HOME, bearer, make_key

EVENT = json.encode({"type": "message.labelled", "data": {"text": "a" * 5_000, "label": "b"}})
MEDIA = {"Content-Type": "application/json"}


@pytest.mark.parametrize("sized", [True, False], ids=["content-length", "chunked"])
async def test_what_there_is_no_room_for_comes_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, *, sized: bool
) -> None:
    """This caller's; another one's is taken meanwhile."""
    body_allowance = BodyAllowance(0, len(EVENT) * 3)
    monkeypatch.setattr(app, "BodyAllowance", lambda: body_allowance)
    mine, other = [bearer(await make_key(settings, "ingest")) for _ in range(2)]
    go_on = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield EVENT[:4_000]
        await go_on.wait()
        yield EVENT[4_000:]

    async def half() -> bool:
        return body_allowance.held >= 4_000

    headers = MEDIA | mine | ({"Content-Length": str(len(EVENT))} if sized else {})
    async with serving(settings) as url, httpx.AsyncClient(headers=AT_HOME, base_url=url, timeout=30) as http:
        first = asyncio.create_task(http.post("/events", content=slowly(), headers=headers))
        await eventually(half)
        for _ in range(2):
            refused = await http.post("/events", content=EVENT, headers=MEDIA | mine)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert "more of your bodies" in refused.json()["detail"]
        assert (await http.post("/events", content=EVENT, headers=MEDIA | other)).status_code == 202
        go_on.set()
        assert (await first).status_code == 202
        assert (await http.post("/events", content=EVENT, headers=MEDIA | mine)).status_code == 202
        assert body_allowance.held == 0


async def test_what_is_promised_takes_no_room(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads with a length and no body behind them: others, and whoever signs in, are let in as before."""
    body_allowance = BodyAllowance()
    monkeypatch.setattr(app, "BodyAllowance", lambda: body_allowance)
    key = await make_key(settings, "ingest", "read")
    head = "POST /events/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {key}\r\nContent-Length: 4194304\r\n\r\n"
    async with serving(settings) as url, httpx.AsyncClient(headers=AT_HOME, base_url=url, timeout=30) as http:
        held = [await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2])) for _ in range(60)]
        for _, writer in held:
            writer.write(head.encode())
            await writer.drain()
        for _ in range(5):
            assert (await http.post("/events", content=EVENT, headers=MEDIA | bearer(key))).status_code == 202
            assert (await http.post("/login", data={"key": key})).status_code == 303
        assert body_allowance.held == 0
        for _, writer in held:
            writer.close()


async def test_whoever_reads_a_body_lets_it_go(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The form of the page too, and requests that fail."""
    body_allowance = BodyAllowance()
    monkeypatch.setattr(app, "BodyAllowance", lambda: body_allowance)
    async with serving(settings) as url, httpx.AsyncClient(headers=AT_HOME, base_url=url, timeout=30) as http:
        for path, body in (
            ("/login", {"data": {"key": "none"}}),
            ("/events", {"json": {}}),
            ("/nowhere", {"json": {}}),
        ):
            await http.post(path, **body)
    assert body_allowance.held == 0


async def test_a_body_that_is_alone_has_room(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BodyAllowance", lambda: BodyAllowance(10, 10))
    async with serving(settings) as url, httpx.AsyncClient(headers=AT_HOME, base_url=url, timeout=30) as http:
        for size in (100, 2 * BODY_SMALL):
            event = {"type": "message.labelled", "data": {"text": "a" * 100, "label": "b"}}
            body = json.encode(event) + b" " * size
            assert (await http.post("/events", content=body, headers=MEDIA)).status_code == 202


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 40)), max_size=60))
def test_no_caller_has_more_than_its_share_and_none_is_lost(asked: list[tuple[str, int]]) -> None:
    shares, held = Shares(100), dict[str, int]()
    for caller, size in asked:
        alone = not shares.held
        full = shares.take(caller, size)
        if full is None:
            held[caller] = held.get(caller, 0) + size
            assert alone or held[caller] <= 100 // (len(held) + 1)
        else:
            assert (full == "this caller") <= (caller in held)
        assert shares.held == sum(held.values()) <= 100
    for caller, size in held.items():
        shares.give_back(caller, size)
    assert (shares.held, shares._by_caller) == (0, {})
