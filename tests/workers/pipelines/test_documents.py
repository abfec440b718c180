"""Document ingestion: passages, their place, and the child event."""

from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from tests.board import Board
from workers.nodes.documents import DOCUMENTS, PASSAGE_MAX, passages

LIFT: Final = "The lift rests on Monday. " * 60
STAIRS: Final = "The stairs never rest. " * 60


@given(st.text(st.sampled_from("ab \n"), max_size=5_000))
def test_passages_say_all_of_it_in_order_and_are_bounded(text: str) -> None:
    found = passages(text)
    assert all(0 < len(each) <= PASSAGE_MAX for each in found)
    assert "".join("".join(found).split()) == "".join(text.split())


def test_short_paragraphs_stay_together() -> None:
    assert passages("One.\n\nTwo.") == ["One.\n\nTwo."]
    assert len(passages(f"{LIFT}\n\n{STAIRS}")) == 4


async def test_a_document_can_be_found_and_somebody_is_told(board: Board) -> None:
    data = {"document_id": "house", "text": f"{LIFT}\n\n{STAIRS}"}
    event = await board.ended(await board.send("document.added", data, source="/house"))
    assert (event["status"], event["result"]) == ("succeeded", {"document_id": "house", "passages": 4})
    rows = await board.sql("select id, metadata from documents where collection = $1 order by id", DOCUMENTS)
    assert [row["id"] for row in rows] == [f"/house house {n}" for n in range(1, 5)]

    (child,) = (await board.http.get("/events", params={"source": f"/events/{event['event_id']}"})).json()["items"]
    notice = await board.ended(child["event_id"])
    assert (notice["type"], notice["data"]) == ("document.ingested", {"document_id": "house", "passages": 4})
    assert notice["result"]["note"] == "told, answer 202", "by the simulator's pager"

    again = await board.ended(await board.send("document.added", data | {"text": LIFT}, source="/house"))
    assert again["result"]["passages"] == 2
    rows = await board.sql("select id from documents where collection = $1 order by id", DOCUMENTS)
    assert [row["id"] for row in rows] == ["/house house 1", "/house house 2"], "nothing is left of the longer one"
