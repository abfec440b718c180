"""A pipeline deletes documents in the transaction that ends its event, or not at all."""

from typing import Any

from schemas import Event
from service.core.settings import Settings
from tests.board import Board, board_on
from tests.programs import program_of
from workers.kit import Pipeline, Reject, Run


class Tidied(Event, tag="tidied", frozen=True):
    ids: list[str]
    fails: bool = False


async def tidy(run: Run, event: Tidied) -> int:
    run.vectors.upsert("notes", "new", "new")
    gone = await run.vectors.delete("notes", ["new", *event.ids])
    run.vectors.upsert("notes", "replaced", "new")
    if event.fails:
        raise Reject("after it was asked for")
    return gone


async def notes(board: Board) -> list[tuple[Any, ...]]:
    rows = await board.sql("select tenant, id, text from documents order by tenant, id")
    return [tuple(row) for row in rows]


async def test_what_is_deleted_goes_with_the_events_end(settings: Settings) -> None:
    flow = Pipeline(on=Tidied, flow=[tidy])
    async with board_on(settings, program_of(settings, tidied=flow)) as board:
        await board.sql(
            "insert into documents (tenant, collection, id, text, embedding) select tenant, 'notes', id, 'old', '[1]' "
            "from unnest(array['default', 'other']) as tenant, unnest(array['stays', 'goes', 'replaced']) as id"
        )
        before = await notes(board)
        failed = await board.ended(await board.send("tidied", {"ids": ["goes"], "fails": True}))
        assert failed["status"] == "dead"
        assert await notes(board) == before
        event = await board.ended(await board.send("tidied", {"ids": ["goes", "replaced", "unknown"]}))
        assert (event["status"], event["result"]) == ("succeeded", 2), "counted are those that were there"
        others = [("other", name, "old") for name in ("goes", "replaced", "stays")]
        kept = [("default", "new", "new"), ("default", "replaced", "new"), ("default", "stays", "old")]
        assert await notes(board) == [*kept, *others], "and what the event upserts is kept"
