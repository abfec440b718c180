"""(source, id) names an event: said twice it is one, said differently it is a conflict."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import httpx
import pytest
from msgspec import json
from msgspec.structs import replace

from schemas import Event
from schemas.catalog import EventType
from service.core.settings import Settings
from tests.board import serving
from tests.keys import AT_HOME
from workers.bootstrap import program


class Priced(Event, tag="test.priced", frozen=True):
    price: Decimal
    note: str = "none"
    tags: tuple[str, ...] = ()


BASE: dict[str, Any] = {"type": "test.priced", "source": "/shop", "id": "order-1", "data": {"price": "1.50"}}


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with _shop(settings) as http:
        yield http


@asynccontextmanager
async def _shop(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    priced = {"test.priced": EventType("test.priced", Priced, json.Decoder(Priced))}
    whole = program(settings)
    whole = replace(whole, catalog={**whole.catalog, **priced})
    async with serving(settings, whole) as url, httpx.AsyncClient(headers=AT_HOME, base_url=url, timeout=30) as http:
        yield http


SAME: list[tuple[str, Any]] = [
    ("word for word", BASE),
    ("time", {**BASE, "time": "2026-03-01T12:00:00Z"}),
    ("traceparent", {**BASE, "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}),
    ("dueat", {**BASE, "dueat": "2100-01-01T00:00:00Z"}),
    ("datacontenttype", {**BASE, "datacontenttype": "application/json"}),
    ("specversion", {**BASE, "specversion": "1.0"}),
    ("a default, said", {**BASE, "data": {"price": "1.50", "note": "none"}}),
    ("another order of the keys", {**BASE, "data": {"tags": [], "note": "none", "price": "1.50"}}),
    ("the same number, written otherwise", {**BASE, "data": {"price": 1.5}}),
]
OTHER: list[tuple[str, Any]] = [
    ("data", {**BASE, "data": {"price": "1.51"}}),
    ("an item in data", {**BASE, "data": {"price": "1.50", "tags": ["new"]}}),
    ("subject", {**BASE, "subject": "mail"}),
    ("partitionkey", {**BASE, "partitionkey": "customer-7"}),
    ("type", {**BASE, "type": "message.labelled", "data": {"text": "a", "label": "b"}}),
]


async def test_what_counts_as_the_same(api: httpx.AsyncClient) -> None:
    first = (await api.post("/events", json=BASE)).json()
    for what, event in SAME:
        response = await api.post("/events", json=event)
        assert (response.status_code, response.json()) == (202, {**first, "duplicate": True}), what
        assert response.headers["location"] == f"/events/{first['event_id']}"
    spaced = b'{ "type" : "test.priced",\n"source":"/shop", "id":"order-1", "data": {\t"price" : "1.50" } }'
    response = await api.post("/events", content=spaced, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["duplicate"]) == (202, True)


async def test_what_counts_as_another(api: httpx.AsyncClient) -> None:
    first = (await api.post("/events", json=BASE)).json()
    for what, event in OTHER:
        response = await api.post("/events", json=event)
        assert response.status_code == 409, what
        assert response.headers["location"] == f"/events/{first['event_id']}"
        assert response.json()["errors"][0]["path"] == "$.id"
    shown = (await api.get(f"/events/{first['event_id']}")).json()
    assert (shown["type"], shown["data"]["price"]) == ("test.priced", "1.50")


async def test_another_source_is_another_event(api: httpx.AsyncClient) -> None:
    first, second = [
        (await api.post("/events", json={**BASE, "source": source})).json() for source in ("/shop", "/other")
    ]
    assert first["event_id"] != second["event_id"]
    assert (first["duplicate"], second["duplicate"]) == (False, False)


async def test_a_duplicate_tells_the_present_status(api: httpx.AsyncClient) -> None:
    later = {**BASE, "dueat": "2100-01-01T00:00:00Z"}
    assert (await api.post("/events", json=later)).json()["status"] == "scheduled"
    assert (await api.post("/events", json=BASE)).json()["status"] == "scheduled"


async def test_data_that_can_not_be_compared_harms_nobody_else(api: httpx.AsyncClient) -> None:
    """A signalling NaN decodes, but to compare it raises: an error of ours, in the middle of a group commit."""
    odd = {**BASE, "id": "odd", "data": {"price": "sNaN"}}
    assert (await api.post("/events", json=odd)).status_code == 202
    good = [{**BASE, "id": str(number)} for number in range(30)]
    answers = await asyncio.gather(*(api.post("/events", json=each) for each in [*good[:15], odd, *good[15:]]))
    assert [answer.status_code for answer in answers] == [202] * 15 + [422] + [202] * 15
    assert (await api.post("/events", json={**BASE, "id": "after"})).status_code == 202
