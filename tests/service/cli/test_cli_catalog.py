"""`callboard pipelines | prompts`: graphs as text, and what a running Callboard knows."""

import asyncio
from pathlib import Path
from typing import Literal

import click
import pytest
from click.testing import CliRunner, Result
from msgspec import json

from schemas import Event
from service.cli import command_line
from service.cli.catalog import drawn, pipelines, prompts
from tests.board import TICKET, Board
from tests.keys import TOKEN
from workers.compiler.graph import edges
from workers.compiler.wiring import compiled
from workers.kit import Pipeline, Run, each, parallel, pipeline, route


class Asked(Event, tag="asked", frozen=True):
    pass


async def one(event: Asked) -> list[int]:
    return []


async def two(event: Asked) -> None: ...


async def item(number: int) -> int:
    return number


async def way(event: Asked) -> Literal["left", "right"]:
    return "left"


@pipeline(on=Asked)
async def free(run: Run, event: Asked) -> None: ...


SHAPES: dict[str, tuple[Pipeline, list[str]]] = {
    "nothing": (Pipeline(on=Asked, flow=[]), []),
    "each": (Pipeline(on=Asked, flow=[one, each(item), two]), ["one → item × each", "item × each → two", "two"]),
    "free": (free, ["free (free form: it decides as it runs)"]),
    "side by side": (
        Pipeline(on=Asked, flow=[one, parallel(two, two), one]),
        ["one → two, two#2", "two → one#2", "two#2 → one#2", "one#2"],
    ),
    "a route with an empty branch": (
        Pipeline(on=Asked, flow=[route(way, {"left": [one], "right": []}), two]),
        ["way? → left: one, right: two", "one → two", "two"],
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_graph_is_readable(shape: str) -> None:
    declared, lines = SHAPES[shape]
    nodes, arrows = edges(compiled(declared))
    told = drawn(
        [{"name": name, "kind": kind} for name, kind in nodes],
        [{"from": begin, "to": end, "label": label} for begin, end, label in arrows],
    )
    assert list(told) == lines


async def call(board: Board, command: click.Command, *arguments: str) -> Result:
    line = [str(command.name), *arguments, "--url", str(board.http.base_url)]
    return await asyncio.to_thread(CliRunner(env={"CALLBOARD_API_KEY": TOKEN}).invoke, command_line({}), line)


async def test_a_running_callboard_is_drawn(board: Board) -> None:
    listed = (await call(board, pipelines)).output.splitlines()
    assert listed[0] == "pipeline\ttype"
    assert "support\tticket.opened" in listed
    output = (await call(board, pipelines, "support")).output
    assert output.startswith("support on ticket.opened, version ")
    assert "by_urgency? → page: page_on_call, answer: draft_reply, close: close\npage_on_call → remember\n" in output
    assert '"edges"' in (await call(board, pipelines, "support", "--json")).output
    assert '"items"' in (await call(board, pipelines, "--json")).output
    unknown = await call(board, pipelines, "no such")
    assert (unknown.exit_code, unknown.output) == (4, "Error: Not Found: no pipeline no such\n")


async def test_list_and_show(board: Board) -> None:
    rows = [line.split("\t") for line in (await call(board, prompts, "list")).output.splitlines()]
    assert rows[0] == ["prompt", "versions", "model", "asked in turn"]
    assert ["tickets/classify", "1", "fast"] in [row[:3] for row in rows]
    shown = (await call(board, prompts, "show", "tickets/classify")).output
    assert shown.startswith("tickets/classify@1, not used yet, openai ")
    assert 'variables = ["ticket"]' in shown
    assert json.decode((await call(board, prompts, "show", "tickets/classify@1", "--json")).output)["version"] == 1
    unknown = await call(board, prompts, "show", "no/such")
    assert (unknown.exit_code, 'No prompt "no/such"' in unknown.output) == (4, True)


async def test_render(board: Board, tmp_path: Path) -> None:
    file = tmp_path / "ticket.json"
    file.write_bytes(json.encode(TICKET))
    inline = f"ticket={json.encode(TICKET).decode()}"
    from_file = await call(board, prompts, "render", "tickets/classify", "--var", f"ticket=@{file}")
    assert from_file.output == (await call(board, prompts, "render", "tickets/classify@1", "--var", inline)).output
    assert "--- system ---\n" in from_file.output
    assert TICKET["body"] in from_file.output.partition("--- user ---\n")[2]
    missing = await call(board, prompts, "render", "tickets/classify")
    assert (missing.exit_code, "wants ticket" in missing.output) == (5, True)
    for wrong in ("ticket", "ticket=@/no/such/file"):
        assert (await call(board, prompts, "render", "tickets/classify", "--var", wrong)).exit_code == 2


async def test_stats(board: Board) -> None:
    assert (await call(board, prompts, "stats")).output.startswith("prompt\tcalls\tok\t")
    event = await board.ended(await board.send("ticket.opened", TICKET))
    rows = [line.split("\t") for line in (await call(board, prompts, "stats", "--days", "7")).output.splitlines()[1:]]
    assert sum(int(row[1]) for row in rows) == event["calls"]
    (row,) = (await call(board, prompts, "stats", "tickets/classify")).output.splitlines()[1:]
    assert row.split("\t")[:3] == ["tickets/classify@1", "1", "1"]
    assert json.decode((await call(board, prompts, "stats", "--json")).output)["items"]
