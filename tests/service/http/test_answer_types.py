"""Answers hold what `/openapi.json` says of them. The clients of all tests look at each: tests/answers.py."""

from typing import Any

import httpx
import pytest
from msgspec import ValidationError, json

from service.http.app_state import JSON
from service.http.routes import OPERATIONS
from tests.answers import hold, operation_of
from tests.board import TICKET, Board
from tests.eventually import eventually
from tests.keys import bearer, make_key

UNTYPED = {"/types/{type}/schema", "/openapi.json"}  # documents of their own standards


def test_every_operation_says_what_it_answers() -> None:
    untyped = {operation.path for operation in OPERATIONS if operation.media == JSON and operation.answer is None}
    assert untyped <= UNTYPED


async def test_each_kind_of_answer_fits(board: Board) -> None:
    """With events of many statuses, so that what may be null is and what may be there is."""
    ticket = await board.ended(await board.send("ticket.opened", TICKET, subject="mail", partitionkey="a", ext1="x"))
    later = await board.send("ticket.opened", TICKET, dueat="2999-01-01T00:00:00Z")
    await board.redis.xadd("callboard:ingest", {"event": "no event"})
    await board.http.post(f"/events/{ticket['event_id']}/replay", json={})
    await board.http.post(f"/events/{later}/cancel")
    await board.ended(ticket["event_id"])
    bad = await board.http.post("/events/batch", json=[{"type": "ticket.opened", "data": TICKET}, {"type": "none"}])
    assert bad.status_code == 207

    async def dead() -> Any:
        return (await board.http.get("/dead-letters")).json()["items"]

    letters = await eventually(dead)
    prompt = (await board.http.get("/prompts")).json()["items"][0]["name"]
    pipeline = (await board.http.get("/types")).json()["items"][0]["pipeline"]
    admin = bearer(await make_key(board.settings, "admin"))
    paths = [
        *("/events?limit=2", "/actors/a", "/actors/none", f"/pipelines/{pipeline}", f"/prompts/{prompt}"),
        *("/prompt-stats", "/workers", "/healthz", "/readyz", f"/events/{later}", f"/events/{ticket['event_id']}"),
        *(f"/dead-letters/{letter['dead_id']}" for letter in letters),
    ]
    for path in paths:
        assert (await board.http.get(path)).status_code == 200, path
    operations = await board.http.get("/operations", headers=admin)
    assert len(operations.json()["items"]) >= 2
    await board.http.post("/dead-letters/replay", json={"type": "ticket.opened", "dry_run": True})


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/healthz", {"status": "ok", "version": "1"}, None),
        ("/healthz", {"status": "ok"}, ValidationError),
        ("/healthz", {"status": "fine", "version": "1"}, ValidationError),
        ("/healthz", {"status": "ok", "version": "1", "more": 1}, AssertionError),
        (
            "/types",
            {"items": [{"type": "a", "pipeline": None, "follow_ups": [], "schema": "", "x": 1}]},
            AssertionError,
        ),
    ],
)
async def test_what_does_not_fit_fails(path: str, body: dict[str, Any], error: type[Exception] | None) -> None:
    assert operation_of("GET", path) is not None
    response = httpx.Response(200, content=json.encode(body), request=httpx.Request("GET", f"http://a{path}"))
    if error is None:
        await hold(response)
    else:
        with pytest.raises(error):
            await hold(response)
