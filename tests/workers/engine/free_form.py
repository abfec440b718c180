"""A finished run of the free form is replayed from its journal, and must ask for the same steps."""

from msgspec import Raw
from msgspec.structs import replace

from tests.board import Board
from tests.workers.kit.runs import open_run
from workers.compiler.plan import execute
from workers.engine.supervisor import Program

DONE = ("done", "replayed")


async def replayed_alike(board: Board, whole: Program, event_id: str) -> None:
    """Steps that were cheap are not in the journal of a success: they run again, the others must be found."""
    event = await board.show(event_id)
    assert event["status"] == "succeeded"
    rows = await board.sql("select step, entry from journal where event_id = $1 and run = $2", event_id, event["run"])
    (row,) = await board.sql("select data from events where event_id = $1", event_id)
    asked = [
        moment["step"]
        for moment in event["timeline"]
        if moment["what"] == "step" and moment["detail"]["state"] in DONE and moment["attempt"] == event["attempts"]
    ]
    async with open_run() as run:
        run._deps.facts.journal = {each["step"]: Raw(each["entry"].encode()) for each in rows}
        plan = whole.wiring[event["type"]].plan
        await execute(
            plan, replace(run, source=event["source"]), whole.catalog[event["type"]].decode(row["data"].encode())
        )
        assert sorted(step.step for step in run._deps.facts.steps) == sorted(asked)
        stored = {step for step in run._deps.facts.journal if "()" not in step}
        assert {step.step for step in run._deps.facts.steps if step.state == "replayed"} == stored
