"""Who did what: lines of the log within bounds, `GET /operations`, `callboard audit`, and by whom an event came."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from msgspec import json
from redis.asyncio import Redis

from service.access import audit
from service.access.audit import LINES_OF_ALL, LINES_OF_ONE, Audit, named
from service.access.keys import KEY, SESSION, mint
from service.cli import command_line
from service.core.metrics import Meters
from service.core.settings import Settings
from tests.board import TICKET, Board, board_on, serving
from tests.eventually import eventually
from tests.keys import bearer, make_key
from tests.servers import NAMES

OWN = {"Sec-Fetch-Site": "same-origin"}
EVENT = {"type": "ticket.opened", "data": TICKET, "dueat": "2099-01-01T00:00:00Z"}
DOCUMENTS = {"documents": [{"id": "D-1", "text": "how to log in"}, {"id": "D-2", "text": "how to log out"}]}


@pytest.fixture
async def http(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "callboard.audit"]


async def counts(http: httpx.AsyncClient) -> dict[tuple[str, str], int]:
    text = (await http.get("/metrics")).text
    found = re.findall(r'callboard_audit_total\{action="(\w+)",status="(\d+)"\} (\d+)', text)
    return {(action, status): int(count) for action, status, count in found}


async def test_each_refusal_has_a_line_with_who_whence_and_where(
    settings: Settings, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    reader, wrong, session = await make_key(settings, "read"), mint(KEY), mint(SESSION)
    event_id = "0197b2c4-5d3e-7c1a-9f60-3a52d7c81e44"
    await http.post(f"/events/{event_id}/cancel", headers=bearer(reader))
    await http.get("/events?key=person@example.org", headers=bearer(wrong))
    await http.get("/events", headers=bearer("hunter2 of somebody"))
    await http.get("/events")
    await http.post("/login", data={"key": wrong}, headers=OWN)
    await http.get("/", headers={"Cookie": f"callboard={session}"})
    await http.get("/")
    await http.get(f"/?token=cl_{'u' * 43}")
    assert lines(caplog) == [
        f"refused 403: key {reader[:11]} from 127.0.0.1, POST /events/{{event_id}}/cancel",
        f"refused 401: key {wrong[:11]} from 127.0.0.1, GET /events",
        "refused 401: key unknown from 127.0.0.1, GET /events",
        "refused 401: key none from 127.0.0.1, GET /events",
        f"refused 401: key {wrong[:11]} from 127.0.0.1, POST /login",
        f"refused 401: key {session[:11]} from 127.0.0.1, GET /",
        "refused 401: key unknown from 127.0.0.1, GET /",
    ]
    assert await counts(http) == {("refused", "401"): 6, ("refused", "403"): 1}


async def test_the_address_is_the_one_a_trusted_proxy_names(
    settings: Settings, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await make_key(settings, "read")
    await http.get("/events", headers={"X-Forwarded-For": "203.0.113.5"})
    assert lines(caplog) == ["refused 401: key none from 203.0.113.5, GET /events"]


async def test_a_flood_fills_no_log_and_hides_nobody_else(
    settings: Settings, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    key = await make_key(settings, "admin")
    await asyncio.gather(*(http.get("/events", headers=bearer(mint(KEY))) for _ in range(2 * LINES_OF_ALL)))
    await asyncio.gather(*(http.get("/types") for _ in range(LINES_OF_ALL)))
    await http.put("/collections/help/documents", json=DOCUMENTS, headers=bearer(key))
    messages = lines(caplog)
    assert len(messages) == LINES_OF_ALL + 1
    assert messages[-1] == f"write_documents 200: key {key[:11]} from 127.0.0.1, PUT /collections/{{name}}/documents"
    assert await counts(http) == {("refused", "401"): 3 * LINES_OF_ALL, ("write_documents", "200"): 1}


def test_what_was_left_out_is_told_when_the_minute_is_over(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    now, noted = 1000.0, Audit(Meters())
    monkeypatch.setattr("service.access.audit.time.monotonic", lambda: now)
    for _ in range(LINES_OF_ONE + 5):
        noted.note("refused", "none", "203.0.113.5", "GET /events", 401)
    noted.note("refused", "none", "203.0.113.6", "GET /events", 401)
    assert len(lines(caplog)) == LINES_OF_ONE + 1, "another address has lines of its own"
    now += audit.MINUTE_S
    noted.note("refused", "none", "203.0.113.5", "GET /events", 401)
    assert lines(caplog)[-2:] == [
        "5 more lines of refused were left out before: callboard_audit_total has all",
        "refused 401: key none from 203.0.113.5, GET /events",
    ]


def test_only_the_beginning_of_a_key_is_a_name() -> None:
    key = mint(KEY)
    assert [named(each) for each in (key, key[:46], f"{key}x", "", "hunter2")] == [
        key[:11],
        "unknown",
        "unknown",
        "none",
        "unknown",
    ]


async def test_signing_in_and_out_and_documents_are_on_record(
    settings: Settings, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    key = await make_key(settings, "admin", "read", tenant="acme")
    other = await make_key(settings, "admin", tenant="other")
    await http.post("/login", data={"key": key}, headers=OWN)
    await http.post("/logout", headers=OWN)
    await http.post("/logout", headers=OWN)
    await http.put("/collections/help/documents", json=DOCUMENTS, headers=bearer(key))
    await http.request("DELETE", "/collections/help/documents", json={"ids": ["D-1"]}, headers=bearer(key))
    assert [line.split(":")[0] for line in lines(caplog)] == [
        "sign_in 303",
        "sign_out 303",
        "write_documents 200",
        "delete_documents 200",
    ]

    async def page_of(as_key: str = key, **query: Any) -> Any:
        return (await http.get("/operations", params=query, headers=bearer(as_key))).json()

    prefix = key[:11]
    done = [(item["actor"], item["action"], item["detail"]) for item in (await page_of())["items"]]
    assert done[:4] == [
        (prefix, "discard", {"collection": "help", "documents": 1}),
        (prefix, "write_documents", {"collection": "help", "documents": 2}),
        (prefix, "sign_out", None),
        (prefix, "sign_in", None),
    ]
    assert [item["action"] for item in (await page_of(other))["items"]] == ["create_key"], "its own tenant's alone"
    first = await page_of(actor=prefix, limit=3)
    rest = await page_of(actor=prefix, limit=3, cursor=first["next"])
    assert [item["action"] for item in first["items"] + rest["items"]] == [action for _, action, _ in done[:4]]
    assert [item["action"] for item in (await page_of(action="sign_in"))["items"]] == ["sign_in"]
    at = first["items"][1]["at"]
    assert [item["action"] for item in (await page_of(since=at))["items"]] == ["discard", "write_documents"]
    assert [item["action"] for item in (await page_of(until=at, actor=prefix))["items"]] == ["sign_out", "sign_in"]


@pytest.fixture
async def board(settings: Settings) -> AsyncIterator[Board]:
    async with board_on(settings) as running:
        yield running


async def test_an_event_says_with_which_key_it_came(board: Board, redis: Redis) -> None:
    key = await make_key(board.settings, "ingest", "read")
    headers = bearer(key)
    one = (await board.http.post("/events", json=EVENT, headers=headers)).json()["event_id"]
    many = (await board.http.post("/events/batch", json=[EVENT], headers=headers)).json()["items"][0]["event_id"]
    for event_id in (one, many):
        shown = (await board.http.get(f"/events/{event_id}", headers=headers)).json()
        assert shown["accepted_by"] == key[:11]
        page = await board.http.get(f"/ui/events/{event_id}", headers=headers)
        assert f"with <code>{key[:11]}</code>" in page.text
    await redis.xadd(NAMES.ingest, {"event": json.encode({**EVENT, "id": "streamed"})})

    async def streamed() -> Any:
        return (await board.http.get("/events", params={"id": "streamed"}, headers=headers)).json()["items"]

    result = await eventually(streamed)
    shown = (await board.http.get(f"/events/{result[0]['event_id']}", headers=headers)).json()
    assert shown["accepted_by"] is None


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    async with Redis.from_url(settings.redis_url) as client:
        yield client


async def test_the_audit_from_the_command_line(
    settings: Settings, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await make_key(settings, "admin")
    await http.put("/collections/help/documents", json=DOCUMENTS, headers=bearer(key))
    monkeypatch.setenv("CALLBOARD_URL", str(http.base_url))

    async def call(*arguments: str, api_key: str = key) -> Any:
        monkeypatch.setenv("CALLBOARD_API_KEY", api_key)
        return await asyncio.to_thread(CliRunner().invoke, command_line({}), ["audit", *arguments])

    table = (await call("--since", "1h", "--action", "write_documents")).output.splitlines()
    assert table[0].split("\t") == ["at", "actor", "action", "event_id", "detail"]
    assert table[1].split("\t")[1:] == [key[:11], "write_documents", "", '{"collection":"help","documents":2}']
    assert len(table) == 2
    page = json.decode((await call("--json", "--limit", "1")).output)
    assert [item["action"] for item in page["items"]] == ["write_documents"]
    assert "create_key" in (await call("--cursor", page["next"])).output
    assert (await call(api_key=await make_key(settings, "read", "operate"))).exit_code == 5
