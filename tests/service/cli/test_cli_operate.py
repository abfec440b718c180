"""`callboard events | dead | replay | cancel` against a running Callboard."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone

import click
import pytest
from click.testing import CliRunner, Result
from msgspec import json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from schemas import Event
from service.cli import api_client, command_line
from service.cli.events import events
from service.cli.operate import cancel, dead, replay
from service.core.settings import Settings
from tests.board import Board, board_on
from tests.keys import TOKEN
from tests.listening import listening_on
from tests.programs import program_of
from workers.kit import Pipeline, Reject


class Refused(Event, tag="refused", frozen=True):
    pass


async def refuse(event: Refused) -> None:
    raise Reject("never")


@pytest.fixture
async def refusing(settings: Settings) -> AsyncIterator[Board]:
    async with board_on(settings, program_of(settings, refused=Pipeline(on=Refused, flow=[refuse]))) as board:
        yield board


async def call(board: Board, command: click.Command, *arguments: str) -> Result:
    line = [str(command.name), *arguments, "--url", str(board.http.base_url)]
    return await asyncio.to_thread(CliRunner(env={"CALLBOARD_API_KEY": TOKEN}).invoke, command_line({}), line)


async def test_dead_letters_from_the_command_line(refusing: Board) -> None:
    event_id = await refusing.send("refused", {})
    await refusing.ended(event_id)
    (letter,) = (await refusing.http.get("/dead-letters")).json()["items"]

    listed = await call(refusing, dead, "list", "--reason", "rejected")
    assert letter["dead_id"] in listed.output.replace("\n", "")
    assert listed.exit_code == 0
    assert '"items":[]' in (await call(refusing, dead, "list", "--reason", "invalid", "--json")).output.replace(" ", "")
    assert "never" in (await call(refusing, dead, "show", letter["dead_id"])).output
    assert json.decode((await call(refusing, dead, "show", letter["dead_id"], "--json")).output) == letter
    page = await call(refusing, dead, "list", "--limit", "1")
    cursor = page.stderr.split()[-1]
    assert (await call(refusing, dead, "list", "--cursor", cursor)).output.count("\n") == 1  # the head alone

    assert (await call(refusing, dead, "discard", "--dry-run")).exit_code == 2
    dry = await call(refusing, dead, "replay", "--type", "refused", "--dry-run")
    assert dry.output == "1 fit, 0 replayed (dry run)\n"
    assert (await call(refusing, dead, "replay", letter["dead_id"])).output == "1 fit, 1 replayed\n"
    assert (await refusing.ended(event_id))["run"] == 2
    assert (await call(refusing, dead, "discard", "--reason", "rejected")).output == "1 fit, 1 discarded\n"
    assert (await refusing.show(event_id))["status"] == "dead"
    gone = await call(refusing, dead, "replay", letter["dead_id"])
    assert (gone.exit_code, gone.stdout) == (4, "0 fit, 0 replayed\n")
    assert (await call(refusing, dead, "show", letter["dead_id"])).exit_code == 4


async def test_what_is_done_to_many_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(_: Request) -> JSONResponse:
        await asyncio.sleep(0.3)
        return JSONResponse({"matched": 20_000, "done": 20_000})

    monkeypatch.setattr(api_client, "REQUEST_TIMEOUT_S", 0.05)
    routes = [Route("/dead-letters/replay", slow, methods=["POST"])]
    async with listening_on(Starlette(routes=routes), lifespan="off") as url:
        line = ["dead", "replay", "--type", "refused", "--url", url]
        result = await asyncio.to_thread(CliRunner(env={"CALLBOARD_API_KEY": TOKEN}).invoke, command_line({}), line)
    assert result.output == "20000 fit, 20000 replayed\n"


async def test_replay_and_cancel_from_the_command_line(refusing: Board) -> None:
    event_id = await refusing.send("refused", {})
    await refusing.ended(event_id)
    assert (await call(refusing, replay, event_id)).output == f"{event_id} queued, run 2\n"
    await refusing.ended(event_id)
    assert (await call(refusing, replay, event_id, "--from", "refuse")).output == f"{event_id} queued, run 3\n"
    waiting = await refusing.send("refused", {}, dueat="2099-01-01T00:00:00Z")
    assert (await call(refusing, cancel, waiting)).output == f"{waiting} cancelled\n"
    assert (await call(refusing, cancel, waiting)).exit_code == 5


async def test_events_from_the_command_line(refusing: Board) -> None:
    later = {"partitionkey": "k\u001b[31m", "dueat": "2099-01-01T00:00:00Z"}
    waiting = [await refusing.send("refused", {}, source="/list", id=f"{n}", **later) for n in range(2)]
    event_id = await refusing.send("refused", {})
    await refusing.ended(event_id)

    head, *rows = [line.split("\t") for line in (await call(refusing, events)).stdout.splitlines()]
    assert head == ["event_id", "accepted", "type", "status", "key", "attempts", "took ms"]
    assert [row[0] for row in rows] == [event_id, *waiting[::-1]]
    assert rows[0][2:6] == ["refused", "dead", "", "1"]
    assert rows[1][2:] == ["refused", "scheduled", "k\ufffd[31m", "0", ""]

    for asked, found in (
        (("--status", "scheduled"), waiting[::-1]),
        (("--type", "no.such"), []),
        (("--key", later["partitionkey"], "--source", "/list", "--id", "0"), waiting[:1]),
        (("--since", "2099-01-01T00:00:00Z"), []),
        (("--until", "2099-01-01T00:00:00Z", "--cursor", event_id), waiting[::-1]),
    ):
        result = await call(refusing, events, *asked, "--json")
        assert [item["event_id"] for item in json.decode(result.stdout)["items"]] == found, asked
    page = await call(refusing, events, "--limit", "1")
    assert page.stderr == f"There may be more: --cursor {event_id}\n"
    for since in ("yesterday", "2026-11-22T10:00:00", "1y", "h", "99999999w"):
        assert (await call(refusing, events, "--since", since)).exit_code == 2, since
    for since, count in (("1h", 3), ("90s", 3), ("0s", 0), ("2w", 3)):
        result = await call(refusing, events, "--since", since, "--json")
        assert len(json.decode(result.stdout)["items"]) == count, since
        letters = await call(refusing, dead, "list", "--since", since, "--json")
        assert len(json.decode(letters.stdout)["items"]) == min(count, 1), since
    hour = timezone(timedelta(hours=1))
    before = (datetime.now(UTC) - timedelta(minutes=5)).astimezone(hour).isoformat()
    assert "refused" in (await call(refusing, events, "--since", before)).stdout
    assert "refused" not in (await call(refusing, events, "--until", before)).stdout
    assert (await call(refusing, events, "--status", "gone")).exit_code == 2
