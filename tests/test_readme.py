"""The pages say what is true: their commands and their files are run."""

import asyncio
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec import json
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from service.core.settings import Settings
from tests.board import ENDED, Board
from tests.eventually import eventually
from tests.keys import TOKEN
from tests.listening import listening_on
from tests.pages import FENCE, PAGES, commands, files, sections, write
from tests.processes import CALLBOARD, LAST_WORDS, ROOT, Up, product_in, up_on

FOUR: Final = "The four files"
PRINTED: Final = files(sections("README.md")[FOUR])
NEW: Final = commands(sections("workers/README.md")["Write files to begin from"])
# What prints whole files, to be copied into one clone; and the commands below them.
EXAMPLES: Final = ("workers/README.md", "workers/models/README.md", "service/documents/README.md")
ANY: Final = "…"  # stands for a text in a result
HERE: Final = "http://127.0.0.1:8000"
SINK: Final = "http://127.0.0.1:9000"
RESULT: Final = "\nresult\n"
JOURNEY_S: Final = 120.0
SEND: Final = ".venv/bin/callboard"


def shell(command: str, address: str, data: str, folder: Path = ROOT) -> str:
    """What a printed line says, with `address` for the printed one, and the token of the folder `data`."""
    done = attempt(command, address, folder, CALLBOARD_DATA_DIR=data)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def attempt(command: str, address: str, folder: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    ours = command.replace(".venv/bin/callboard", shlex.join(CALLBOARD)).replace(HERE, address)
    ours = re.sub(r"^curl ", "curl --fail-with-body ", ours).replace(".callboard/token", '"$CALLBOARD_DATA_DIR/token"')
    environ = {**os.environ, "CALLBOARD_URL": address, **more}
    return subprocess.run(["sh", "-c", ours], cwd=folder, env=environ, capture_output=True, text=True, timeout=60)


def test_every_command_is_one_that_is_run() -> None:
    """`make up` is run by test_up.py, those of deploy/ by `make deploy-test` and `make swarm-test`, the rest below."""
    known = {
        (page, section): [line.split()[0] for line in commands(text)]
        for page in PAGES
        if not page.startswith("deploy/")
        for section, text in sections(page).items()
    }
    assert {where: names for where, names in known.items() if names} == {
        ("README.md", "Try it"): ["make", "curl"],
        ("README.md", FOUR): [SEND] * 2,
        ("schemas/README.md", "Many events in one request"): ["curl"],
        ("service/README.md", "Keys"): ["export", SEND, "curl", SEND],
        ("service/cli/README.md", ""): [SEND] * 7,
        ("service/http/README.md", ""): ["curl"] * 2,
        ("service/http/README.md", "Follow an event"): ["curl"],
        ("workers/README.md", "Nodes side by side"): [SEND],
        ("workers/README.md", "A node for every item"): [SEND],
        ("workers/README.md", "Branches, and an early end"): [SEND] * 2,
        ("workers/README.md", "Limits, retries, resources"): [SEND],
        ("workers/README.md", "The free form"): [SEND],
        ("workers/README.md", "The outside"): [SEND],
        ("workers/README.md", "Child events"): [SEND],
        ("workers/README.md", "Follow-ups"): [SEND] * 2,
        ("workers/README.md", "State"): [SEND] * 2,
        ("workers/README.md", "Write files to begin from"): [SEND] * 5,
        ("workers/models/README.md", "Prompts"): [SEND] * 4,
        ("workers/models/README.md", "Embeddings"): [SEND],
        ("service/documents/README.md", ""): ["curl"] * 3,
        ("service/documents/README.md", "In a pipeline"): [SEND] * 3,
    }


async def test_the_commands_work_as_printed(board: Board) -> None:
    address = str(board.http.base_url)
    (board.settings.data_path / "token").write_text(f"{TOKEN}\n", encoding="ascii")
    message = {"text": "My password is rejected when I log in.", "label": "login_problem"}
    event_id = (await board.ended(await board.send("message.labelled", message)))["event_id"]
    printed = [
        *commands(sections("README.md")["Try it"]),
        *commands(PAGES["schemas/README.md"]),
        *commands(sections("workers/models/README.md")["Prompts"]),
        *commands(sections("service/documents/README.md")[""]),
        *commands(PAGES["service/cli/README.md"]),
        *commands(PAGES["service/http/README.md"]),
    ]
    for line in printed:
        if line.startswith("make ") or (line.startswith("curl ") and not shutil.which("curl")):
            continue
        output = await asyncio.to_thread(shell, line.replace("EVENT_ID", event_id), address, board.settings.data_dir)
        if "/search" in line:
            assert [item["id"] for item in json.decode(output)["items"]] == ["H-1"]
        elif "/stream" in line:
            assert "event: end\n" in output
        elif "replay EVENT_ID" in line:
            await board.ended(event_id)
        elif output.startswith("HTTP/1.1 202"):
            event = await board.ended(json.decode(output.splitlines()[-1])["event_id"])
            event_id = event["event_id"]
            assert (event["status"], event["result"]["intent"]) == ("succeeded", "login_problem")
            assert event["result"]["reply"], "a stored reply"


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl here")
async def test_a_key_as_printed_opens_the_door_until_it_is_revoked(board: Board) -> None:
    script = "\n".join(commands(sections("service/README.md")["Keys"])).replace("PREFIX", "$CALLBOARD_API_KEY")
    environ = {"DATABASE_URL": board.settings.database_url}
    done = await asyncio.to_thread(attempt, script, str(board.http.base_url), ROOT, **environ)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert '{"items":[],"next":null}' in done.stdout
    assert done.stdout.endswith(" is revoked\n")


def environ_of(settings: Settings) -> dict[str, str]:
    return {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url, "CALLBOARD_SIMULATE": "on"}


async def test_the_four_files_make_an_event(settings: Settings, tmp_path: Path) -> None:
    assert {Path(name).parts[0] for name in PRINTED} == {"schemas", "prompts", "workers"}
    assert len(PRINTED) == 4
    copy = product_in(tmp_path / "clone")
    write(copy, PRINTED)
    are_well_formed(copy, PRINTED)
    with up_on(tmp_path, environ_of(settings), copy) as up:
        await up.program.says(LAST_WORDS)
        send, draw = commands(sections("README.md")[FOUR])
        output = shell(send, up.address, up.data)
        assert re.search(r"^status +succeeded$", output, re.MULTILINE)
        result = json.decode(output[output.index(RESULT) + len(RESULT) :])
        assert (result["order_id"], result["because"]) == ("O-7", "simulated because")
        assert result["paid"] in (0.0, 19.9)
        await dead_above_the_limit(up)
        assert shell(draw, up.address, up.data).endswith("\njudge → decide\ndecide\n")


def are_well_formed(copy: Path, printed: dict[str, str]) -> None:
    code = [str(copy / name) for name in printed if name.endswith(".py")]
    for check in (("check",), ("format", "--check")):
        command = (sys.executable, "-m", "ruff", *check, "--config", str(ROOT / "pyproject.toml"), *code)
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout


async def test_the_examples_give_what_the_pages_show(settings: Settings, tmp_path: Path) -> None:
    """All files of all pages together in one clone; each command there, and below it the result that it gives."""
    copy = product_in(tmp_path / "clone")
    for page in EXAMPLES:
        printed = files(PAGES[page])
        write(copy, printed)
        are_well_formed(copy, printed)
    async with sink() as address:
        with up_on(tmp_path, environ_of(settings), copy) as up:
            await up.program.says(LAST_WORDS)
            for section in (text for page in EXAMPLES for text in sections(page).values()):
                expected = [json.decode(code) for language, code in FENCE.findall(section) if language == "json"]
                if expected:
                    lines = [line.replace(SINK, address) for line in commands(section)]
                    told = [await asyncio.to_thread(shell, line, up.address, up.data) for line in lines]
                    results = [json.decode(each[each.index(RESULT) + len(RESULT) :]) for each in told if RESULT in each]
                    assert all(map(fits, results, expected)), (section[:40], results)
                    assert len(results) == len(expected), section[:40]
            await nothing_is_dead(up)


def fits(result: dict[str, Any], expected: dict[str, Any]) -> bool:
    """The same but for texts of models."""
    return result == {name: result.get(name) if value == ANY else value for name, value in expected.items()}


@asynccontextmanager
async def sink() -> AsyncIterator[str]:
    """The other program of the examples."""
    app = Starlette(routes=[Route("/notes", lambda _: Response(), methods=["POST"])])
    async with listening_on(app) as address:
        yield address


async def nothing_is_dead(up: Up) -> None:
    """What the commands have sent has succeeded, and so has all that these events caused."""
    async with up.client() as http:

        async def ended() -> list[dict[str, Any]] | None:
            items: list[dict[str, Any]] = (await http.get("/events", params={"limit": 500})).json()["items"]
            return items if all(each["status"] in ENDED for each in items) else None

        found = await eventually(ended)
    assert found
    assert [each for each in found if each["status"] != "succeeded"] == []
    assert {each["type"] for each in found} >= {"parcel.packed", "parcel.shipped", "coins.added", "help.wanted"}
    assert len({each["pipeline"] for each in found} & {"shipping", "thanks"}) == 2


async def test_from_new_files_to_a_result(settings: Settings, tmp_path: Path) -> None:
    """As a new user goes: with `make up` running, no file of ours edited, nothing waited for but the programs."""
    copy = product_in(tmp_path / "clone")
    before = {file: file.read_bytes() for file in copy.rglob("*.*") if "__pycache__" not in file.parts}
    with up_on(tmp_path, environ_of(settings), copy) as up:
        await up.program.says(LAST_WORDS)
        *news, send = NEW
        begun = time.monotonic()
        wrote = [shell(line, up.address, up.data, copy).split()[1] for line in news]
        written = time.monotonic()

        async def result() -> str | None:
            done = await asyncio.to_thread(attempt, send, up.address, copy, CALLBOARD_DATA_DIR=up.data)
            return done.stdout if done.returncode == 0 else None

        told = await eventually(result, JOURNEY_S)
        print(f"four files: {written - begun:.1f} s; from there to the result: {time.monotonic() - written:.1f} s")
    assert told
    assert "(simulated text)" in told
    assert [Path(each).parts[0] for each in wrote] == ["schemas", "prompts", "workers", "workers"]
    after = {file: file.read_bytes() for file in copy.rglob("*.*") if "__pycache__" not in file.parts}
    assert {file.relative_to(copy).as_posix() for file in after.keys() - before.keys()} == set(wrote)
    assert before == {file: after[file] for file in before}


async def dead_above_the_limit(up: Up) -> None:
    async with up.client() as http:
        data = {"order_id": "O-8", "amount": 10_001, "reason": ""}
        event_id = (await http.post("/events", json={"type": "refund.requested", "data": data})).json()["event_id"]

        async def dead() -> Any:
            shown = (await http.get(f"/events/{event_id}")).json()
            return shown["error"] if shown["status"] == "dead" else None

        assert (await eventually(dead))["step"] == "judge"
