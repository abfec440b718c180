"""The command line against a running Callboard: what a user types, and the status a script sees."""

import asyncio
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec import Struct, json
from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from schemas.events.tickets import TicketOpened
from service.cli.up import seed
from service.core.settings import Settings
from tests.board import TICKET, Board, board_on
from tests.keys import TOKEN, make_key
from tests.listening import listening_on
from tests.processes import CALLBOARD, free_port, run
from tests.programs import program_of
from workers.kit import Pipeline, Reject, Run

DATA: Final = json.encode(TICKET).decode()
GONE: Final = [(command, "0197b2c4-5d3e-7c1a-9f60-3a52d7c81e44") for command in ("show", "tail", "replay", "cancel")]
LAST_LINE: Final = re.compile(r"done=(\d+) dead=(\d+) calls=(\d+) cost_usd=(\d+\.\d+) p50_ms=(\d+) p99_ms=(\d+)")


async def callboard(board: Board, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    environ = {"CALLBOARD_URL": str(board.http.base_url), "CALLBOARD_API_KEY": TOKEN, "COLUMNS": "100"}
    return await asyncio.to_thread(run, (*CALLBOARD, *arguments), environ, stdin=stdin)


async def refuse(ticket: TicketOpened) -> None:
    raise Reject(f"{ticket.ticket_id} is of no customer")


class Said(Struct, frozen=True):
    text: str


async def speak(run: Run, ticket: TicketOpened) -> Said:
    return Said(await run.llm.stream("tickets/language", returns=str, ticket=ticket))


async def test_send_wait_and_show_tell_how_an_event_fared(board: Board) -> None:
    sent = await callboard(board, "send", "ticket.opened", "--data", DATA, "--key", "customer-7", "--wait")
    assert sent.returncode == 0, sent.stderr
    assert re.search(r"^status +succeeded$", sent.stdout, re.MULTILINE)
    assert re.search(r"^key +customer-7$", sent.stdout, re.MULTILINE)
    assert "recall_similar" in sent.stdout
    event_id = sent.stdout.split()[1]

    shown = await callboard(board, "show", event_id)
    assert (shown.returncode, shown.stdout) == (0, sent.stdout)
    result = await callboard(board, "show", event_id, "--json")
    assert json.decode(result.stdout) == await board.show(event_id)


async def test_send_returns_with_the_202_and_the_same_id_is_the_same_event(board: Board, tmp_path: Path) -> None:
    (tmp_path / "ticket.json").write_text(DATA, encoding="utf-8")
    words = ("send", "ticket.opened", "--id", "mail-1", "--source", "/mail", "--data")
    first = await callboard(board, *words, f"@{tmp_path / 'ticket.json'}", "--json")
    accepted = json.decode(first.stdout)
    assert (first.returncode, accepted["id"], accepted["source"], accepted["duplicate"]) == (
        0,
        "mail-1",
        "/mail",
        False,
    )
    again = await callboard(board, *words, "-", stdin=DATA)
    assert again.returncode == 0
    assert again.stdout.startswith(accepted["event_id"])
    assert again.stdout.endswith("(sent before)\n")


async def test_a_dead_event_exits_with_1(settings: Settings) -> None:
    program = program_of(settings, support=Pipeline(on=TicketOpened, flow=[refuse]))
    async with board_on(settings, program) as board:
        sent = await callboard(board, "send", "ticket.opened", "--data", DATA, "--wait")
        assert sent.returncode == 1
        assert re.search(r"^status +dead$", sent.stdout, re.MULTILINE)
        assert "T-1 is of no customer" in sent.stdout
        shown = await callboard(board, "show", sent.stdout.split()[1], "--json")
        assert (shown.returncode, json.decode(shown.stdout)["error"]["step"]) == (1, "refuse")

        fed = await callboard(board, "demo")
        assert fed.returncode == 1
        assert last_line(fed)[:2] == (0, 60)
        assert "dead: callboard show " in fed.stdout


async def test_tail_tells_an_event_while_it_happens(settings: Settings) -> None:
    program = program_of(settings, support=Pipeline(on=TicketOpened, flow=[speak]))
    async with board_on(settings, program) as board:
        event_id = await board.send("ticket.opened", TICKET)
        told = await callboard(board, "tail", event_id, "--json")
        assert told.returncode == 0, told.stderr
        messages = [json.decode(line) for line in told.stdout.splitlines()]
        result = (await board.show(event_id))["result"]
        assert messages[-1] == {"event": "end", "status": "succeeded", "result": result}
        assert "".join(message["text"] for message in messages if message["event"] == "token") == result["text"]

        read = await callboard(board, "tail", event_id)
        assert read.returncode == 0
        assert f"speak: {result['text']}\n" in read.stdout
        assert "succeeded" in read.stdout.splitlines()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("send", "ticket.opened", "--data", '{"ticket_id": 7}'), "$.data.ticket_id"),
        (("send", "ticket.closed", "--data", "{}"), "ticket.closed"),
        *((words, "no event 0197b2c4-5d3e-7c1a-9f60-3a52d7c81e44") for words in GONE),
    ],
)
async def test_what_is_refused_exits_with_5_and_what_is_not_there_with_4(
    board: Board, arguments: tuple[str, ...], sentence: str
) -> None:
    done = await callboard(board, *arguments)
    assert (done.returncode, done.stdout) == (4 if arguments in GONE else 5, "")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


async def test_wrong_usage_exits_with_2_and_no_service_with_3(board: Board) -> None:
    assert (await callboard(board, "send", "ticket.opened", "--data", "{")).returncode == 2
    nobody = f"http://127.0.0.1:{free_port()}"
    gone = await callboard(board, "send", "ticket.opened", "--data", DATA, "--url", nobody)
    assert (gone.returncode, gone.stdout) == (3, "")
    assert f"No Callboard answers at {nobody}" in gone.stderr


async def test_the_demo_takes_its_60_messages_to_their_end(board: Board) -> None:
    await seed(replace(board.settings, port=board.http.base_url.port or 0))
    fed = await callboard(board, "demo")
    assert fed.returncode == 0, fed.stderr
    done, dead, calls, cost_usd, p50_ms, p99_ms = last_line(fed)
    assert (done, dead) == (60, 0)
    assert calls >= 120, "two calls at least for each ticket"
    assert cost_usd > 0
    assert 0 < p50_ms <= p99_ms
    right = re.search(r"^intent right\t(\d+) of 60 ", fed.stdout, re.MULTILINE)
    assert right, fed.stdout
    assert int(right[1]) >= 42, "the neighbours are real: far better than one in ten"

    (source,) = set(re.findall(r"/demo/[0-9a-f-]{36}", fed.stderr))
    items = (await board.http.get("/events", params={"source": source, "limit": "500"})).json()["items"]
    assert [item["status"] for item in items] == ["succeeded"] * 60


async def test_the_demo_on_a_file_teaches_nine_tenths_and_asks_the_tenth(board: Board, tmp_path: Path) -> None:
    said = {"card_arrival": "when does my new card arrive", "lost_phone": "my telephone was stolen yesterday"}
    rows = [f'"{text}, {n}",{label}\n' for n in range(15) for label, text in said.items()]
    (tmp_path / "some.csv").write_text("text,category\n" + "".join(rows), encoding="utf-8")
    fed = await callboard(board, "demo", str(tmp_path / "some.csv"))
    assert fed.returncode == 0, fed.stderr
    assert last_line(fed)[:2] == (30, 0)
    assert "intent right\t3 of 3 (100.0 %)" in fed.stdout


def last_line(done: "subprocess.CompletedProcess[str]") -> tuple[Any, ...]:
    found = LAST_LINE.fullmatch(done.stdout.splitlines()[-1])
    assert found, done.stdout
    return tuple(float(each) if "." in each else int(each) for each in found.groups())


async def test_beside_callboard_up_the_token_of_the_data_folder_does(board: Board, tmp_path: Path) -> None:
    """It goes to loopback alone."""
    (tmp_path / "token").write_text(f"{TOKEN}\n", encoding="ascii")
    environ = {"CALLBOARD_URL": str(board.http.base_url), "CALLBOARD_DATA_DIR": str(tmp_path)}
    done = await asyncio.to_thread(run, (*CALLBOARD, "events"), environ)
    assert done.returncode == 0, done.stderr
    sent = list[str | None]()

    async def refuse(request: Request) -> Response:
        sent.append(request.headers.get("authorization"))
        return JSONResponse({"title": "no"}, 401, media_type="application/problem+json")

    async with listening_on(Starlette(routes=[Route("/events", refuse)])) as url:
        for address in (url, url.replace("127.0.0.1", "127.0.0.2")):
            environ = {"CALLBOARD_URL": address, "CALLBOARD_DATA_DIR": str(tmp_path)}
            await asyncio.to_thread(run, (*CALLBOARD, "events"), environ)
    assert sent == [f"Bearer {TOKEN}"]


async def test_where_keys_are_in_use_it_says_which_variable_and_uses_it(board: Board) -> None:
    may_send, may_all = [await make_key(board.settings, *scopes) for scopes in (("ingest", "read"), ("admin",))]
    send, replay = ("send", "ticket.opened", "--wait", "--data", DATA), ("dead", "replay", "--reason", "rejected")
    for key, words, status, told in (
        ("", send, 5, "a key is needed"),
        ("cb_mistyped", send, 5, "none that is valid here"),
        (may_send, send, 0, ""),
        (may_send, replay, 5, "lacks the scope `operate`"),
        (may_all, replay, 0, ""),
    ):
        environ = {"CALLBOARD_URL": str(board.http.base_url), "CALLBOARD_API_KEY": key}
        done = await asyncio.to_thread(run, (*CALLBOARD, *words), environ)
        assert (done.returncode, told in done.stderr) == (status, True), done.stderr
        assert ("Set CALLBOARD_API_KEY to a key" in done.stderr) is bool(status)
