"""What the worked example trusts: examples of a ticket's own source, and those that a key with `documents` has put."""

from pathlib import Path
from typing import Any

import httpx

from service.cli.up import SEED_PATH, seed
from service.core.settings import Settings
from tests.board import TICKET, Board
from tests.keys import bearer, make_key
from workers.nodes import triage

POISON = {"text": f"{TICKET['subject']}\n{TICKET['body']}", "label": "poison"}
TRUSTED = {"id": "1", "text": "You charged my card twice", "metadata": {"label": "double_charge"}}


async def intent(board: Board, source: str = "/shop") -> Any:
    event = await board.ended(await board.send("ticket.opened", TICKET, source=source))
    return event["result"]["intent"]


async def ended(board: Board, response: httpx.Response) -> str:
    assert response.status_code == 202, response.text
    return str((await board.ended(response.json()["event_id"]))["status"])


async def test_a_key_that_sends_events_teaches_nothing_to_other_sources(board: Board) -> None:
    """Whatever it says that its events come from: the seed's name, that of a key, or what they cause."""
    sender = bearer(await make_key(board.settings, "ingest"))
    put = await board.http.put("/collections/seed/documents", json={"documents": [TRUSTED]})
    assert put.status_code == 200
    assert await intent(board) == "double_charge"
    labelled = {"type": "message.labelled", "data": POISON}
    for source in ("/seed", "seed", "/other"):
        taught = await board.http.post("/events", json={**labelled, "source": source}, headers=sender)
        assert await ended(board, taught) == "succeeded"
    for source in ("key local", f"key {sender['Authorization'][7:18]}", "/events/1"):
        refused = await board.http.post("/events", json={**labelled, "source": source}, headers=sender)
        assert (refused.status_code, refused.json()["errors"][0]["path"]) == (422, "$.source")
    poisoned = {"documents": [{**TRUSTED, "text": POISON["text"], "metadata": {"label": "poison"}}]}
    refused = await board.http.put("/collections/seed/documents", json=poisoned, headers=sender)
    assert refused.status_code == 403
    assert await intent(board) == "double_charge"
    assert await intent(board, "/other") == "poison", "of its own source alone"


async def test_what_was_seeded_by_events_before_is_not_trusted(board: Board) -> None:
    """By a release that did, and by whoever knew that source."""
    await board.ended(await board.send("message.labelled", POISON, source="/seed"))
    assert await intent(board) == "unknown"


async def test_the_seed_goes_where_the_example_looks_and_only_once(board: Board) -> None:
    known = Settings(port=board.http.base_url.port or 0, local_token=board.settings.local_token)
    await seed(known)
    assert Path(SEED_PATH).name == triage.SEED
    first, *_ = rows = await board.sql("select id from documents where collection = $1 order by id", triage.SEED)
    assert len(rows) == 60
    await board.http.request("DELETE", f"{SEED_PATH}/documents", json={"ids": [first["id"]]})
    await seed(known)
    rows = await board.sql("select id from documents where collection = $1", triage.SEED)
    noted = await board.sql("select detail from operations where action = 'write_documents'")
    assert (len(rows), len(noted)) == (59, 1), "what somebody has deleted stays away"
    assert await board.sql("select 1 from events") == []
    assert await intent(board) != "unknown"
