"""`/openapi.json` is valid, has every route, and says what real requests find to be so."""

from typing import Any

import httpx
import pytest
from msgspec import Struct, json
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate
from starlette.routing import Route

from schemas import Event
from schemas.catalog import EventType
from service.core.settings import Settings
from service.http.app import create_app
from service.http.openapi import described
from service.http.routes import OPERATIONS
from tests.board import TICKET

EVENT = {"type": "ticket.opened", "data": TICKET}


@pytest.fixture
async def told(api: httpx.AsyncClient) -> dict[str, Any]:
    document: dict[str, Any] = (await api.get("/openapi.json")).json()
    return document


def fits(told: dict[str, Any], schema: dict[str, Any], value: Any) -> bool:
    return bool(OAS31Validator({**schema, "components": told["components"]}).is_valid(value))


def body_of(told: dict[str, Any], path: str, method: str) -> dict[str, Any]:
    schema: dict[str, Any] = told["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]
    return schema


async def test_it_is_valid_and_has_every_route(told: dict[str, Any], settings: Settings) -> None:
    validate(told)
    there = {(path, method) for path, methods in told["paths"].items() for method in methods}
    routed = {
        (route.path.replace(":path", "").replace(":uuid", ""), method.lower())
        for route in create_app(settings).routes
        if isinstance(route, Route) and not route.path.startswith(("/ui", "/log")) and route.path != "/"
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert there == {(path.removesuffix("/"), method) for path, method in routed}


async def test_what_it_lets_in_is_taken_and_what_it_refuses_is_not(
    api: httpx.AsyncClient, told: dict[str, Any]
) -> None:
    put, search = "/collections/{name}/documents", "/collections/{name}/search"
    good: list[tuple[str, str, Any]] = [
        ("/events", "post", {**EVENT, "anextension": 1}),
        ("/events/batch", "post", [EVENT, EVENT]),
        (put, "put", {"documents": [{"id": "a", "text": "a"}]}),
        (search, "post", {"query": "a", "k": 3}),
        ("/dead-letters/replay", "post", {"type": "ticket.opened", "dry_run": True}),
    ]
    bad: list[tuple[str, str, Any]] = [
        ("/events", "post", {**EVENT, "type": "ticket.unheard_of"}),
        ("/events", "post", {"type": "ticket.opened"}),
        ("/events", "post", {**EVENT, "data": {**TICKET, "subject": "s" * 501}}),
        (put, "put", {"documents": [{"id": "a"}]}),
        (search, "post", {"query": "a", "k": 101}),
        ("/dead-letters/replay", "post", {"reasons": []}),
    ]
    for path, method, body in good + bad:
        answer = await api.request(method, path.replace("{name}", "help"), json=body)
        is_good = (path, method, body) in good
        assert (answer.status_code < 300) is is_good, (path, answer.text)
        responses = told["paths"][path][method]["responses"]
        said = responses.get(str(answer.status_code), responses["default"])["content"]
        assert fits(told, said[answer.headers["content-type"]]["schema"], answer.json()), answer.text
        assert fits(told, body_of(told, path, method), body) is is_good, body


class Line(Struct, frozen=True):
    text: str


class Replay(Event, tag="shop/re play:1", frozen=True):
    """Named as a Struct of ours is, with another inside it, and of a type that is no name of a component."""

    lines: list[Line]


def test_event_types_of_any_name() -> None:
    kind = EventType("shop/re play:1", Replay, json.Decoder(Replay))
    body = json.decode(json.encode(described(OPERATIONS, {kind.name: kind})))
    validate(body)
    event: dict[str, Any] = {"type": "shop/re play:1", "data": {"lines": [{"text": "a"}]}}
    assert fits(body, body_of(body, "/events", "post"), event)
    assert not fits(body, body_of(body, "/events", "post"), {**event, "data": {"lines": [{}]}})
    assert fits(body, body_of(body, "/events/{event_id}/replay", "post"), {"from": "a"})


async def test_each_parameter_is_asked_for_by_its_name(api: httpx.AsyncClient, told: dict[str, Any]) -> None:
    operation = told["paths"]["/events"]["get"]
    assert operation["security"] == [{"key": ["read"]}]
    names = {parameter["name"]: parameter["schema"] for parameter in operation["parameters"]}
    assert set(names) == {"type", "status", "key", "source", "id", "parent", "since", "until", "limit", "cursor"}
    assert (names["limit"]["maximum"], (await api.get("/events?limit=501")).status_code) == (500, 400)
    letters = {parameter["name"] for parameter in told["paths"]["/dead-letters"]["get"]["parameters"]}
    assert letters == {"type", "reason", "since", "until", "limit", "cursor"}
    assert told["paths"]["/healthz"]["get"]["security"] == []


def test_where_events_come_in_a_caller_may_be_told_to_wait(told: dict[str, Any]) -> None:
    paths = told["paths"]
    limited = [path for path, methods in paths.items() if "429" in methods.get("post", {}).get("responses", {})]
    assert limited == ["/events", "/events/batch"]
    assert "Retry-After" in paths["/events"]["post"]["responses"]["429"]["headers"]
