"""What a tenant's events write and remember is found by its events alone."""

from typing import Any

import httpx
from msgspec import Struct

from schemas import Event
from service.core.settings import Settings
from tests.board import ENDED, Board, board_on
from tests.eventually import eventually
from tests.keys import bearer, make_key
from tests.programs import program_of
from workers.kit import Pipeline, Run, State


class Heard(Event, tag="heard", frozen=True):
    text: str


class Echoed(Event, tag="echoed", frozen=True):
    text: str


class Memory(Struct, frozen=True):
    texts: list[str] = []


class Known(Struct, frozen=True):
    found: list[str]
    remembered: list[str]


async def recall(run: Run, event: Heard, state: State[Memory]) -> Known:
    documents = await run.vectors.search("heard", event.text, k=10)
    run.vectors.upsert("heard", event.text, event.text)
    known = Known([each.text for each in documents], state.value.texts)
    state.set(Memory([*state.value.texts, event.text]))
    run.emit(Echoed(event.text))
    return known


async def echo(event: Echoed) -> str:
    return event.text


async def said(board: Board, key: str, text: str) -> Any:
    event = {"type": "heard", "partitionkey": "one", "data": {"text": text}}
    event_id = (await board.http.post("/events", json=event, headers=bearer(key))).json()["event_id"]

    async def ended() -> dict[str, Any] | None:
        shown: dict[str, Any] = (await board.http.get(f"/events/{event_id}", headers=bearer(key))).json()
        return shown if shown["status"] in ENDED else None

    shown = await eventually(ended)
    assert shown is not None
    return shown["result"]


async def test_documents_states_and_children_are_a_tenants_own(settings: Settings) -> None:
    acme, other = [await make_key(settings, "ingest", "read", tenant=name) for name in ("acme", "other")]
    hearing = Pipeline(on=Heard, flow=[recall])
    async with board_on(
        settings, program_of(settings, hearing=hearing, echoing=Pipeline(on=Echoed, flow=[echo]))
    ) as board:
        assert await said(board, acme, "first") == {"found": [], "remembered": []}
        assert await said(board, other, "second") == {"found": [], "remembered": []}
        assert await said(board, acme, "third") == {"found": ["first"], "remembered": ["first"]}
        for key, texts in ((acme, {"first", "third"}), (other, {"second"})):
            assert await _echoes(board.http, key, len(texts)) == texts


async def _echoes(http: httpx.AsyncClient, key: str, count: int) -> set[str]:
    """What the children say that a key sees."""

    async def ended() -> list[str]:
        query = {"type": "echoed", "status": "succeeded"}
        items = (await http.get("/events", params=query, headers=bearer(key))).json()["items"]
        return [item["event_id"] for item in items] if len(items) >= count else []

    shown = [(await http.get(f"/events/{each}", headers=bearer(key))).json() for each in await eventually(ended)]
    return {each["data"]["text"] for each in shown}
