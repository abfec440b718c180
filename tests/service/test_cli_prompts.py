"""`callboard prompts`, against a running Callboard."""

import asyncio
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from msgspec import json

from service.cli.prompts import prompts
from tests.board import TICKET, Board


async def call(board: Board, *arguments: str) -> Result:
    line: Any = [*arguments, "--url", str(board.http.base_url)]
    return await asyncio.to_thread(CliRunner().invoke, prompts, line)


async def test_list_and_show(board: Board) -> None:
    rows = [line.split("\t") for line in (await call(board, "list")).output.splitlines()]
    assert rows[0] == ["prompt", "versions", "model", "asked in turn"]
    assert ["tickets/classify", "1", "fast"] in [row[:3] for row in rows]
    shown = (await call(board, "show", "tickets/classify")).output
    assert shown.startswith("tickets/classify@1, not used yet, openai ")
    assert 'variables = ["ticket"]' in shown
    assert json.decode((await call(board, "show", "tickets/classify@1", "--json")).output)["version"] == 1
    unknown = await call(board, "show", "no/such")
    assert (unknown.exit_code, 'No prompt "no/such"' in unknown.output) == (1, True)


async def test_render(board: Board, tmp_path: Path) -> None:
    file = tmp_path / "ticket.json"
    file.write_bytes(json.encode(TICKET))
    inline = f"ticket={json.encode(TICKET).decode()}"
    from_file = await call(board, "render", "tickets/classify", "--var", f"ticket=@{file}")
    assert from_file.output == (await call(board, "render", "tickets/classify@1", "--var", inline)).output
    assert "--- system ---\n" in from_file.output
    assert TICKET["body"] in from_file.output.partition("--- user ---\n")[2]
    missing = await call(board, "render", "tickets/classify")
    assert (missing.exit_code, "wants ticket" in missing.output) == (1, True)
    for wrong in ("ticket", "ticket=@/no/such/file"):
        assert (await call(board, "render", "tickets/classify", "--var", wrong)).exit_code == 2


async def test_stats(board: Board) -> None:
    assert (await call(board, "stats")).output.startswith("prompt\tcalls\tok\t")
    event = await board.ended(await board.send("ticket.opened", TICKET))
    rows = [line.split("\t") for line in (await call(board, "stats", "--days", "7")).output.splitlines()[1:]]
    assert sum(int(row[1]) for row in rows) == event["calls"]
    (row,) = (await call(board, "stats", "tickets/classify")).output.splitlines()[1:]
    assert row.split("\t")[:3] == ["tickets/classify@1", "1", "1"]
    assert json.decode((await call(board, "stats", "--json")).output)["items"]
