"""Tables on a terminal: as wide as it is, with nothing cut; and what a terminal is told of colours, help, versions."""

import asyncio
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import click
import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len

from schemas import Event
from service.cli import COMMANDS, command_line
from service.cli.table import INDENT, cells_of, fitted
from service.core.release import release
from service.core.settings import Settings
from tests.board import Board, board_on
from tests.keys import TOKEN, make_key
from tests.processes import CALLBOARD, ROOT, alone
from tests.programs import program_of
from workers.kit import Pipeline, Reject, Run

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
LONG = "the customer's order can't be found in any of the systems, whatever name it is looked for under: 日本語 " * 3


class OrderHasBeenRefused(Event, tag="order.has.been.refused.by.the.warehouse", frozen=True):
    children: int = 0


async def refuse(run: Run, event: OrderHasBeenRefused) -> str:
    if not event.children:
        raise Reject(LONG)
    for _ in range(event.children):
        run.emit(OrderHasBeenRefused())
    return "done"


@pytest.fixture
async def board(settings: Settings) -> AsyncIterator[Board]:
    pipeline = Pipeline(on=OrderHasBeenRefused, flow=[refuse])
    async with board_on(settings, program_of(settings, a_pipeline_with_a_long_name=pipeline)) as running:
        yield running


def on_terminal(board: Board, *arguments: str, columns: int = 80, **environ: str) -> tuple[int, str]:
    """The exit status of a command that a person types, and what the terminal is sent."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    here = {"CALLBOARD_URL": str(board.http.base_url), "CALLBOARD_API_KEY": TOKEN, "TERM": "xterm"}
    here |= {"DATABASE_URL": board.settings.database_url}
    process = subprocess.Popen(
        (*CALLBOARD, *arguments), cwd=ROOT, env=alone(here | environ), stdin=its, stdout=its, stderr=its
    )
    os.close(its)
    told = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux says so where macOS gives an empty one: it has ended
            break
        if not chunk:
            break
        told += chunk
    os.close(ours)
    return process.wait(30), told.decode().replace("\r\n", "\n")


def widest(told: str) -> int:
    return max(cell_len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in told.splitlines())


async def test_every_table_fits_80_columns_with_whole_ids_and_numbers(board: Board) -> None:
    parent = await board.send("order.has.been.refused.by.the.warehouse", {"children": 2}, partitionkey="k" * 60)
    await board.ended(parent)
    children = [item["event_id"] for item in (await board.http.get(f"/events?parent={parent}")).json()["items"]]
    for child in children:
        await board.ended(child)
    await board.http.post(f"/events/{children[0]}/replay", json={})
    await board.ended(children[0])
    letters = [item["dead_id"] for item in (await board.http.get("/dead-letters")).json()["items"]]
    await board.http.put("/collections/help/documents", json={"documents": [{"id": "D-1", "text": "how to log in"}]})
    tables = {
        ("events", "--since", "1h"): [parent, *children],
        ("dead", "list", "--since", "1h"): [*letters, "rejected"],
        ("show", parent): [parent, *children],
        ("pipelines",): ["a_pipeline_with_a_long_name"],
        ("prompts", "list"): ["tickets/classify"],
        ("prompts", "stats", "--since", "1h"): [],
        ("audit", "--since", "1h"): [children[0], "replay", "write_documents"],
        ("forget", "--key", "k" * 60, "--dry-run"): ["events", "attempts"],
    }
    for arguments, whole in tables.items():
        status, told = await asyncio.to_thread(on_terminal, board, *arguments)
        assert (status, widest(told) <= 80) == (0, True), told
        assert not [row for row in whole if row not in told], told
        assert "…" not in told
    _, told = await asyncio.to_thread(on_terminal, board, "dead", "list")
    cells = re.sub(r"\s+", "", told)
    assert re.sub(r"\s+", "", LONG[:80]) in cells, "a text is wrapped, not cut"

    await make_key(board.settings, "admin", "ingest", "operate", "read")
    status, told = await asyncio.to_thread(on_terminal, board, "keys", "list")
    assert (status, widest(told) <= 80) == (0, True), told
    assert re.search(r"^cb_\w{8} ", told, re.MULTILINE)


async def test_a_terminal_is_told_no_colours_with_no_color(board: Board) -> None:
    event_id = await board.send("order.has.been.refused.by.the.warehouse", {})
    await board.ended(event_id)
    status, told = await asyncio.to_thread(on_terminal, board, "show", event_id)
    assert (status, "\x1b[31mdead" in told) == (1, True), told
    for value, coloured in (("1", False), ("", True)):
        _, told = await asyncio.to_thread(on_terminal, board, "show", event_id, NO_COLOR=value)
        assert ("\x1b[" in told) is coloured


def _commands(command: click.Command, *words: str) -> Iterator[tuple[str, ...]]:
    yield words
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _commands(found, *words, name)


GROUP = command_line({})
ALL = list(_commands(GROUP))


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_fits_80_columns_and_is_given_for_h(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(GROUP, [*words, "-h"], prog_name="callboard", terminal_width=80)
    assert result.exit_code == 0
    assert result.output.startswith("Usage: callboard")
    assert not [line for line in result.output.splitlines() if len(line) > 80]
    assert "-h, --help" in result.output


def test_every_command_was_asked_for_help() -> None:
    assert len(ALL) > len(COMMANDS) + 8


def test_every_command_that_reads_has_json() -> None:
    reads = {"show", "events", "tail", "dead list", "dead show", "pipelines", "keys list", "send"}
    reads |= {"audit", "forget"}
    reads |= {f"prompts {name}" for name in ("list", "show", "render", "stats")}
    having = {
        " ".join(words)
        for words in ALL
        if "--json" in CliRunner().invoke(GROUP, [*words, "-h"], prog_name="callboard").output and words
    }
    assert having == reads


def test_the_version_is_told() -> None:
    result = CliRunner().invoke(GROUP, ["--version"], prog_name="callboard")
    assert (result.exit_code, result.output) == (0, f"callboard {release()}\n")


CELLS = st.one_of(st.text(max_size=120).map(str.strip), st.uuids().map(str), st.integers(0, 10**12).map(str))
TABLES = st.integers(1, 9).flatmap(
    lambda count: st.lists(st.lists(CELLS, min_size=count, max_size=count), min_size=1, max_size=5)
)


@given(TABLES, st.integers(40, 200))
@example([["\U0001f3fb", "☺️" * 30, "👩‍👩‍👧" * 30, "日本" * 30, "e\u0301" * 90]], 40)
def test_nothing_is_cut_however_wide_the_terminal(rows: list[list[str]], width: int) -> None:
    head = [f"column {n}" for n in range(len(rows[0]))]
    printable = [["".join(filter(str.isprintable, cell)) for cell in row] for row in rows]
    lines = list(fitted(head, printable, width))
    assert max(map(cell_len, lines)) <= width
    told = "\n".join(lines)
    for cell in (cell for row in printable for cell in row):
        if cells_of(cell) <= width - len(INDENT):
            assert cell.strip() in told
    letters = sorted("".join(cell for row in (head, *printable) for cell in row).replace(" ", ""))
    assert sorted(re.sub(r"[ \n]", "", told)) == letters


def test_columns_stand_below_each_other() -> None:
    one, two = str(uuid4()), str(uuid4())
    rows = [(one, "succeeded", "7", "x" * 50), (two, "dead", "1,234", "y")]
    assert list(fitted(("event_id", "status", "n", "error"), rows, 60)) == [
        f"{'event_id':36}  {'status':9}  {'n':>5}",
        "    error",
        f"{one}  succeeded      7",
        f"    {'x' * 50}",
        f"{two}  dead       1,234",
        "    y",
    ]


def test_where_there_is_no_terminal_a_row_is_a_line_with_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    from service.cli.table import print_rows

    print_rows(("a", "b"), [("1\t", "x" * 300), ("2\n", "2026-03-01T12:00:00.000+00:00")])
    assert capsys.readouterr().out == f"a\tb\n1 \t{'x' * 300}\n2 \t2026-03-01T12:00:00.000+00:00\n"
