"""Who is let in: every route by key and scope, and the local token; and each tenant to its own."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Final
from uuid import UUID, uuid4

import httpx
import pytest
from msgspec import json
from msgspec.structs import replace
from starlette.requests import Request
from starlette.routing import Route

from schemas.identity import uuid7
from service.access.keys import HELD_S, KEY, mint
from service.core.settings import Settings
from service.http.app import create_app
from service.http.auth import caller
from tests.board import TICKET, Board, serving
from tests.eventually import eventually
from tests.keys import AT_HOME, bearer, make_key, revoke

# Every route, and what a key must be allowed for it. A new one is written down here too.
NEEDS: Final = {
    "POST /events": "ingest",
    "POST /events/batch": "ingest",
    "GET /events": "read",
    "GET /events/{event_id}": "read",
    "GET /events/{event_id}/stream": "read",
    "POST /events/{event_id}/replay": "operate",
    "POST /events/{event_id}/cancel": "operate",
    "GET /dead-letters": "read",
    "DELETE /dead-letters": "operate",
    "GET /dead-letters/{dead_id:uuid}": "read",
    "POST /dead-letters/replay": "operate",
    "POST /forget": "admin",
    "GET /operations": "admin",
    "GET /actors/{key:path}": "read",
    "POST /collections/{name}/search": "read",
    "PUT /collections/{name}/documents": "documents",
    "DELETE /collections/{name}/documents": "documents",
    "GET /types": "read",
    "GET /types/{type}/schema": "read",
    "GET /pipelines/{name}": "read",
    "GET /prompts": "read",
    "GET /prompts/{name:path}": "read",
    "POST /prompts/{name:path}/render": "read",
    "GET /prompt-stats": "read",
    "GET /workers": "read",
    "GET /openapi.json": "read",
    "GET /metrics": "open",
    "GET /metrics/fleet": "open",
    "GET /": "read",
    "GET /ui/events/{event_id}": "read",
    "GET /healthz": "open",
    "GET /readyz": "open",
    "GET /login": "open",
    "POST /login": "open",
    "POST /logout": "open",
    "GET /ui/static/{name}": "open",
}
PAGES: Final = ("GET /", "GET /ui/events/{event_id}")
NO_TENANTS: Final = (
    "GET /types",
    "GET /types/{type}/schema",
    "GET /pipelines/{name}",
    "GET /prompts",
    "GET /prompts/{name:path}",
    "POST /prompts/{name:path}/render",
    "GET /prompt-stats",  # says no word of an event: looked at by its counts
    "GET /workers",
    "GET /openapi.json",
)
STREAM: Final = "GET /events/{event_id}/stream"  # says no word of the event itself
MARK: Final = "belongs-to-acme"
ASKED: Final = {"POST /collections/{name}/search": {"query": MARK, "mode": "hybrid"}}
ACTOR: Final = "actor-7"
EVENT: Final = {
    "type": "ticket.opened",
    "data": {**TICKET, "body": MARK},
    "partitionkey": ACTOR,
    "source": f"/{MARK}",
}


def filled(path: str, event_id: object, dead_id: object) -> str:
    names = {"{event_id}": event_id, "{dead_id:uuid}": dead_id, "{key:path}": ACTOR}
    names["{name:path}"] = "tickets/classify"
    called = {"ui": "callboard.css", "collections": "tickets"}.get(path.split("/")[1], "support")
    names |= {"{type}": "ticket.opened", "{name}": called}
    for name, value in names.items():
        path = path.replace(name, str(value))
    return path


@pytest.fixture
async def http(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """An API where a key was made."""
    await make_key(settings, "read")
    async with serving(settings) as url, httpx.AsyncClient(base_url=url, timeout=30, verify=False) as client:
        yield client


def test_every_route_is_written_down(settings: Settings) -> None:
    routed = {
        f"{method} {route.path if route.path == '/' else route.path.rstrip('/')}"
        for route in create_app(settings).routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert routed == NEEDS.keys()


async def test_without_a_key_nothing_but_what_is_open(http: httpx.AsyncClient) -> None:
    for route, need in NEEDS.items():
        method, _, path = route.partition(" ")
        for each in (method, "HEAD") if method == "GET" else (method,):
            for headers in ({}, bearer(mint(KEY)), {"Authorization": "Bearer"}, {"Authorization": "Basic Y2I6eA=="}):
                answer = await http.request(each, filled(path, uuid4(), uuid4()), headers=headers)
                if need == "open":
                    assert answer.status_code in ((200, 303) if "login" not in path else (200, 401)), route
                elif route in PAGES:
                    assert (answer.status_code, answer.headers["location"][:12]) == (303, "/login?next="), route
                else:
                    assert answer.status_code == 401, route
                    assert answer.headers["www-authenticate"].startswith('Bearer realm="callboard"')
                    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("scope", ["ingest", "documents", "read", "operate", "admin"])
async def test_a_key_opens_what_its_scope_says_and_no_more(
    settings: Settings, http: httpx.AsyncClient, scope: str
) -> None:
    headers = bearer(await make_key(settings, scope))
    for route, need in NEEDS.items():
        if need != "open":
            method, _, path = route.partition(" ")
            answer = await http.request(method, filled(path, uuid4(), uuid4()), headers=headers)
            assert (answer.status_code == 403) is (scope not in (need, "admin")), route
            assert answer.status_code not in (401, 303), route
            if answer.status_code == 403 and route not in PAGES:
                assert f"lacks the scope `{need}`" in answer.json()["detail"]
                assert f'error="insufficient_scope", scope="{need}"' in answer.headers["www-authenticate"]


async def test_what_is_no_key_is_401_and_never_echoed(http: httpx.AsyncClient) -> None:
    for told in ("", "cb_", "cb_seen", "seen cb_seen", "seen" * 2_000, "seen\xff", "'; -- seen", "seen,seen"):
        answer = await http.get("/events", headers=[(b"Authorization", f"Bearer {told}".strip().encode("latin-1"))])
        assert answer.status_code == 401, told
        assert "seen" not in answer.text + str(answer.headers), told


async def test_whoever_is_refused_hears_it_with_a_large_body_still_coming(http: httpx.AsyncClient) -> None:
    for _ in range(2):  # the connection can be used again
        assert (await http.post("/events", content=b" " * 8_000_000, headers=bearer(mint(KEY)))).status_code == 401


@pytest.mark.usefixtures("briefly")
async def test_an_ended_key_lets_nobody_in(settings: Settings, http: httpx.AsyncClient) -> None:
    late = await make_key(settings, "read", lasts=timedelta(seconds=-1))
    assert (await http.get("/events", headers=bearer(late))).status_code == 401
    key = await make_key(settings, "read")
    assert (await http.get("/events", headers=bearer(key))).status_code == 200
    await revoke(settings, key)

    async def out() -> bool:
        return (await http.get("/events", headers=bearer(key))).status_code == 401

    assert await eventually(out, HELD_S + 1)


@pytest.mark.usefixtures("briefly")
async def test_without_postgres_it_is_503_and_not_401(settings: Settings) -> None:
    away = replace(settings, database_url="postgresql://127.0.0.1:9/none")
    async with serving(away) as url, httpx.AsyncClient(base_url=url, timeout=5) as http:
        asked = (http.get("/events"), http.get("/events", headers=bearer(mint(KEY))), http.get("/"))
        assert [result.status_code for result in await asyncio.gather(*asked)] == [503, 503, 503]


async def test_no_key_is_in_any_log(
    settings: Settings, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key, wrong = await make_key(settings, "read"), mint(KEY)
    for each in (key, wrong):
        await http.get("/events", headers=bearer(each))
        await http.post("/login", data={"key": each})
    lines = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpcore", "httpx"))]
    assert not [each for each in lines if key[11:] in each or wrong[11:] in each]


FROM_HERE: Final[tuple[dict[str, str], ...]] = (
    {},
    {"Host": "localhost:8000"},
    {"Host": "[::1]:8000"},
    {"Host": ""},
    {"Host": "evil.example"},
    {"X-Forwarded-For": "127.0.0.1"},
    {"X-Forwarded-For": "127.0.0.1, 203.0.113.5"},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "http://localhost", "Host": "localhost"},
)
CROSS_SITE: Final[tuple[dict[str, str], ...]] = (
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
)


async def test_where_somebody_comes_from_lets_nobody_in(settings: Settings) -> None:
    """Before a key is made, too: who has the local token is in, from wherever; all others are not."""
    event = {"type": "ticket.opened", "data": TICKET}
    async with serving(settings) as url, httpx.AsyncClient(base_url=url) as api:
        for headers in (*FROM_HERE, *CROSS_SITE):
            answer = await api.post("/events", json=event, headers=headers)
            assert answer.status_code == (403 if headers in CROSS_SITE else 401), headers
            known = await api.post("/events", json=event, headers={**headers, **AT_HOME})
            assert known.status_code == 202, headers


async def test_without_a_local_token_a_key_is_needed(settings: Settings) -> None:
    """As with `python -m service`, which knows none."""
    async with serving(replace(settings, local_token="")) as url, httpx.AsyncClient(base_url=url) as api:
        for headers in ({}, AT_HOME, {"Authorization": "Bearer"}, {"Authorization": "Bearer cl_"}):
            assert (await api.get("/events", headers=headers)).status_code == 401
            assert (await api.get("/?token=", headers=headers)).headers["location"] == "/login?next=%2F"
        assert (await api.get("/healthz")).status_code == 200


async def test_with_a_key_a_program_may_come_from_anywhere(settings: Settings, http: httpx.AsyncClient) -> None:
    headers = bearer(await make_key(settings, "ingest")) | {"Host": "api.example", "X-Forwarded-For": "203.0.113.5"}
    event = {"type": "ticket.opened", "data": TICKET}
    assert (await http.post("/events", json=event, headers=headers)).status_code == 202


async def letter(board: Board) -> UUID:
    """A dead letter of acme's that names no event."""
    dead_id = uuid7()
    said = json.encode({**EVENT, "id": "dead"}).decode()
    await board.sql(
        "insert into dead_letters (dead_id, origin, tenant, type, reason, error, attempts, event)"
        " values ($1, $2, 'acme', 'ticket.opened', 'rejected', '{}', 1, $3)",
        *(dead_id, str(dead_id), said),
    )
    return dead_id


async def acmes(board: Board, headers: dict[str, str]) -> tuple[str, UUID]:
    """An ended event of acme's with an actor's state, and a dead letter: their ids."""
    event_id = (await board.http.post("/events", json={**EVENT, "id": MARK}, headers=headers)).json()["event_id"]

    async def ended() -> bool:
        shown = (await board.http.get(f"/events/{event_id}", headers=headers)).json()
        return bool(shown["status"] == "succeeded")

    assert await eventually(ended)
    await board.sql(
        "insert into states (tenant, partition_key, type, value, event_id) values ('acme', $1, 'Memory', $2, $3)",
        *(ACTOR, json.encode({"said": MARK}).decode(), UUID(event_id)),
    )
    return event_id, await letter(board)


async def test_another_tenant_sees_and_changes_nothing(board: Board) -> None:
    """Every route that reads, with another tenant's ids: 404, or nothing in it."""
    acme, other = [bearer(await make_key(board.settings, "admin", tenant=name)) for name in ("acme", "other")]
    event_id, dead_id = await acmes(board, acme)
    for route, need in NEEDS.items():
        method, _, path = route.partition(" ")
        if need == "read" and route not in NO_TENANTS:
            mine, theirs = [
                await board.http.request(
                    method, filled(path, event_id, dead_id), headers=headers, json=ASKED.get(route)
                )
                for headers in (acme, other)
            ]
            assert mine.status_code == 200, route
            assert MARK in mine.text or route == STREAM, route
            assert theirs.status_code == (404 if "_id" in path else 200), route
            assert MARK not in theirs.text, route
    stats = [(await board.http.get("/prompt-stats", headers=headers)).json()["items"] for headers in (acme, other)]
    assert [bool(row) for row in stats] == [True, False], "calls of acme's, none of the other's"
    actor = (await board.http.get(f"/actors/{ACTOR}", headers=other)).json()
    assert actor == {"key": ACTOR, "states": {}, "mailbox": 0, "in_hand": None}
    for path in ("replay", "cancel"):
        assert (await board.http.post(f"/events/{event_id}/{path}", headers=other)).status_code == 404
    for step in ("similar", "no such step"):
        answer = await board.http.post(f"/events/{event_id}/replay", json={"from": step}, headers=other)
        assert answer.status_code == 422
        assert "has no step" in answer.json()["detail"], "the same, whether the step exists or not"
    for method, path in (("POST", "/dead-letters/replay"), ("DELETE", "/dead-letters")):
        answer = await board.http.request(method, path, json={"ids": [str(dead_id)]}, headers=other)
        assert answer.json() == {"matched": 0, "done": 0}
    assert (await board.http.get(f"/dead-letters/{dead_id}", headers=acme)).status_code == 200
    everything = {"filter": {"source": {"ne": ""}}}
    for headers, deleted in ((other, 0), (acme, 1)):
        gone = await board.http.request("DELETE", "/collections/tickets/documents", json=everything, headers=headers)
        assert gone.json() == {"deleted": deleted}


async def test_two_tenants_may_say_events_of_the_same_name(settings: Settings, http: httpx.AsyncClient) -> None:
    answers = [
        await http.post(
            "/events",
            json={"type": "ticket.opened", "source": "/mail", "id": "1", "data": {**TICKET, "body": name}},
            headers=bearer(await make_key(settings, "ingest", tenant=name)),
        )
        for name in ("acme", "other")
    ]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert len({answer.json()["event_id"] for answer in answers}) == 2


async def test_what_operators_do_is_recorded_with_their_keys_prefix(board: Board) -> None:
    key = await make_key(board.settings, "admin", tenant="acme")
    event_id, dead_id = await acmes(board, bearer(key))
    replayed = await board.http.post(f"/events/{event_id}/replay", headers=bearer(key))
    assert replayed.status_code == 202
    later = {"type": "ticket.opened", "data": TICKET, "dueat": "2099-01-01T00:00:00Z"}
    waits = (await board.http.post("/events", json=later, headers=bearer(key))).json()["event_id"]
    assert (await board.http.post(f"/events/{waits}/cancel", headers=bearer(key))).status_code == 202
    letters = {"ids": [str(dead_id)]}
    taken = await board.http.post("/dead-letters/replay", json=letters, headers=bearer(key))
    assert taken.json() == {"matched": 1, "done": 1}
    again = (await board.http.get("/events?id=dead", headers=bearer(key))).json()["items"]
    assert len(again) == 1, "it is the event of the tenant whose letter it was"
    letters = {"ids": [str(await letter(board))]}
    gone = await board.http.request("DELETE", "/dead-letters", json=letters, headers=bearer(key))
    assert gone.json() == {"matched": 1, "done": 1}
    rows = await board.sql("select tenant, actor, action from operations where action not like '%key' order by at")
    assert [tuple(row) for row in rows] == [
        ("acme", key[:11], act) for act in ("replay", "cancel", "replay", "discard")
    ]
    shown = (await board.http.get(f"/events/{waits}", headers=bearer(key))).json()
    assert [moment["detail"] for moment in shown["timeline"] if moment["what"] == "cancelled"] == [{"by": key[:11]}]


def test_who_was_let_in_is_known_only_behind_the_guard() -> None:
    with pytest.raises(AttributeError):
        caller(Request({"type": "http", "headers": [], "path": "/"}))
