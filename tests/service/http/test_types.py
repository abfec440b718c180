"""What can be said, and what is done about it, as the API tells it."""

from tests.board import TICKET, Board


async def test_types_and_their_schemas(board: Board) -> None:
    items = (await board.http.get("/types")).json()["items"]
    assert {
        "type": "ticket.opened",
        "pipeline": "support",
        "follow_ups": [],
        "schema": "/types/ticket.opened/schema",
    } in items
    schema = (await board.http.get("/types/ticket.opened/schema")).json()
    assert schema["required"] == list(TICKET)
    assert schema["additionalProperties"] is False
    assert (await board.http.get("/types/no.such/schema")).status_code == 404


async def test_the_graph_of_a_pipeline(board: Board) -> None:
    graph = (await board.http.get("/pipelines/support")).json()
    assert set(graph) == {"name", "type", "version", "nodes", "edges", "after", "follow_ups"}
    assert {"name": "by_urgency", "kind": "router"} in graph["nodes"]
    assert {"from": "by_urgency", "to": "page/page_on_call", "label": "page"} in graph["edges"]
    assert {"from": "close/close", "to": "remember", "label": None} in graph["edges"]
    assert (await board.http.get("/pipelines/no_such")).status_code == 404
