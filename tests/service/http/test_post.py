"""POST /events and GET /events/{event_id}, word for word."""

import asyncio
from typing import Any
from uuid import UUID

import httpx

from tests.board import TICKET, Board

JSON = "application/json"
CLOUDEVENTS = "application/cloudevents+json"
TICKET_OPENED: dict[str, Any] = {"type": "ticket.opened", "data": TICKET}
SHOWN = {
    *("specversion", "id", "source", "type", "datacontenttype", "data"),
    *(
        "event_id",
        "status",
        "attempts",
        "attempts_max",
        "run",
        "accepted_at",
        "accepted_by",
        "due_at",
        "started_at",
        "finished_at",
    ),
    *("worker", "pipeline", "result", "error", "cost_usd", "calls", "timeline"),
}
MOMENT = {"seq", "at", "what", "step", "attempt", "ms", "detail"}


async def test_accepted_word_for_word(api: httpx.AsyncClient) -> None:
    response = await api.post("/events", json=TICKET_OPENED)
    assert (response.status_code, response.headers["content-type"]) == (202, JSON)
    accepted = response.json()
    event_id = accepted["event_id"]
    assert accepted == {
        "event_id": event_id,
        "id": event_id,
        "source": "/http",
        "status": "queued",
        "duplicate": False,
    }
    assert UUID(event_id).version == 7
    assert response.headers["location"] == f"/events/{event_id}"
    assert (await api.get(response.headers["location"])).json()["event_id"] == event_id


async def test_both_slashes_answer_without_redirect(api: httpx.AsyncClient) -> None:
    for path in ("/events", "/events/"):
        assert (await api.post(path, json=TICKET_OPENED)).status_code == 202
        assert len((await api.get(path)).json()["items"]) >= 1


async def test_structured_mode_is_the_same_form(api: httpx.AsyncClient) -> None:
    event = {
        **TICKET_OPENED,
        "specversion": "1.0",
        "source": "https://example.org/tickets",
        "subject": "mail",
        "time": "2026-03-01T12:00:00Z",
        "datacontenttype": JSON,
        "dataschema": "https://example.org/ticket.json",
        "partitionkey": "customer-7",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "comexampleext": "kept",
        "sampledrate": 30,
        "flag": True,
    }
    for media_type in (JSON, f"{JSON}; charset=utf-8", "Application/JSON", CLOUDEVENTS):
        event["id"] = f"id of {media_type}"
        accepted = await api.post("/events", json=event, headers={"Content-Type": media_type})
        assert accepted.status_code == 202, accepted.text
        shown = (await api.get(accepted.headers["location"])).json()
        assert {name: shown[name] for name in event} == event


async def test_what_was_not_said_is_not_returned(api: httpx.AsyncClient) -> None:
    accepted = await api.post("/events", json={**TICKET_OPENED, "subject": None, "time": None, "someext": None})
    shown = (await api.get(accepted.headers["location"])).json()
    assert set(shown) == SHOWN
    assert (shown["specversion"], shown["datacontenttype"]) == ("1.0", JSON)


async def test_a_waiting_event_has_every_field(api: httpx.AsyncClient) -> None:
    event = {**TICKET_OPENED, "dueat": "2100-01-01T00:00:00Z"}
    accepted = await api.post("/events", json=event)
    assert accepted.json()["status"] == "scheduled"
    shown = (await api.get(accepted.headers["location"])).json()
    assert set(shown) == SHOWN | {"dueat"}
    assert (shown["status"], shown["due_at"], shown["dueat"]) == ("scheduled", event["dueat"], event["dueat"])
    assert (shown["attempts"], shown["run"], shown["calls"], shown["cost_usd"]) == (0, 1, 0, 0)
    for name in ("started_at", "finished_at", "worker", "result", "error"):
        assert shown[name] is None, name
    assert [(moment["seq"], moment["what"]) for moment in shown["timeline"]] == [(1, "accepted")]
    assert set(shown["timeline"][0]) == MOMENT


async def test_an_ended_event_has_every_field(board: Board) -> None:
    labelled = {"text": "I was charged twice", "label": "double_charge"}
    shown = await board.ended(await board.send("message.labelled", labelled))
    assert set(shown) == SHOWN
    assert shown["status"] == "succeeded"
    assert [name for name in ("started_at", "finished_at", "worker", "pipeline", "result") if shown[name] is None] == []
    assert all(set(moment) == MOMENT for moment in shown["timeline"])


async def test_what_is_no_extension(api: httpx.AsyncClient) -> None:
    no_names = ("Upper", "someExt", "with_underscore", "with-dash", "a" * 21, "data_base64", "ä", "")
    taken = SHOWN - set(TICKET_OPENED) - {"specversion", "id", "source", "datacontenttype"}  # they would hide it
    no_values: tuple[Any, ...] = (1.5, 1e300, [], {}, "x" * 2001)
    wrong = [(name, "x") for name in (*no_names, *taken)] + [("someext", value) for value in no_values]
    for name, value in wrong:
        response = await api.post("/events", json={**TICKET_OPENED, name: value})
        assert response.status_code == 422, (name, response.text)
        assert response.json()["errors"][0]["path"] == f"$.{name}"


async def test_the_idempotency_key_is_the_id_where_the_body_has_none(api: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "key-1"}
    first = (await api.post("/events", json=TICKET_OPENED, headers=key)).json()
    assert first["id"] == "key-1"
    again = (await api.post("/events", json=TICKET_OPENED, headers=key)).json()
    named = (await api.post("/events", json={**TICKET_OPENED, "id": "key-1"}, headers=key)).json()
    assert again == named == {**first, "duplicate": True}


async def test_an_idempotency_key_must_not_contradict_the_id(api: httpx.AsyncClient) -> None:
    response = await api.post("/events", json={**TICKET_OPENED, "id": "b"}, headers={"Idempotency-Key": "a"})
    assert (response.status_code, response.json()["errors"][0]["path"]) == (400, "$.id")
    for key in (b"", b"k" * 201, "ä".encode()):
        response = await api.post("/events", json=TICKET_OPENED, headers={b"Idempotency-Key": key})
        assert response.status_code == 400
    assert (await api.get("/events")).json()["items"] == []


async def test_fifty_at_once_with_one_id_are_one_event(board: Board) -> None:
    labelled = {"text": "Where is my card?", "label": "card_arrival"}
    answers = await asyncio.gather(*(board.post("message.labelled", labelled, id="one") for _ in range(50)))
    assert {answer.status_code for answer in answers} == {202}
    accepted = [answer.json() for answer in answers]
    assert len({answer["event_id"] for answer in accepted}) == 1
    assert [answer["duplicate"] for answer in accepted].count(False) == 1
    shown = await board.ended(accepted[0]["event_id"])
    assert shown["result"]["label"] == "card_arrival"
    assert [dict(row) for row in await board.sql("select count(*) as n from attempts")] == [{"n": 1}]
    late = await board.post("message.labelled", labelled, id="one")
    assert (late.json()["duplicate"], late.json()["status"]) == (True, "succeeded")
