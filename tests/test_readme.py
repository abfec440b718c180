"""README.md says what is true: its commands and its code are run, its tables are held against the product."""

import asyncio
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec import json
from starlette.routing import Route

from service.cli import COMMANDS
from service.http.app import create_app
from service.settings import Settings
from tests.board import Board
from tests.eventually import eventually
from tests.faults.matrix import MATRIX
from tests.keys import TOKEN
from tests.processes import CALLBOARD, LAST_WORDS, ROOT, Up, product_in, up_on

README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
SECTIONS: Final = {part.partition("\n")[0]: part for part in README.split("\n## ")}
FOUR: Final = "An event in four files"
KEYS: Final = "Keys and tenants"
BLOCK: Final = re.compile(r"^\*\*`([\w/.]+)`\*\*[^\n]*\n\n```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
PRINTED: Final = dict(BLOCK.findall(SECTIONS[FOUR]))
HERE: Final = "http://127.0.0.1:8000"
JOURNEY_S: Final = 120.0


def commands(section: str) -> list[str]:
    """The lines of the bash blocks of a section, each with those it goes on on."""
    blocks = re.findall(r"^```bash\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", "").splitlines()]


def rows(heading: str) -> Iterator[list[str]]:
    """The rows of the table with this first column."""
    match = re.search(rf"^\| {re.escape(heading)} \|.*\n\|[ |-]+\n((?:\|.*\n)+)", README, re.MULTILINE)
    assert match, heading
    for line in match[1].splitlines():
        yield [cell.strip() for cell in line.strip("|").split("|")]


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


def test_every_command_is_one_that_is_run_here() -> None:
    """`make up` and `make test` are run by test_up.py and by CI, the rest below."""
    known = {section: [line.split()[0] for line in commands(section)] for section in SECTIONS}
    assert {section: names for section, names in known.items() if names} == {
        "Try it": ["make", "curl", ".venv/bin/callboard", "make"],
        FOUR: [".venv/bin/callboard"] * 7,
        "Models": [".venv/bin/callboard"] * 4,
        "Search": ["curl"] * 3,
        KEYS: ["export", ".venv/bin/callboard", "curl", ".venv/bin/callboard"],
        "Operate": ["curl", *[".venv/bin/callboard"] * 7, "curl", "curl"],
    }


async def test_the_commands_work_as_printed(board: Board) -> None:
    address = str(board.http.base_url)
    (board.settings.data_path / "token").write_text(f"{TOKEN}\n", encoding="ascii")
    message = {"text": "My password is rejected when I log in.", "label": "login_problem"}
    event_id = (await board.ended(await board.send("message.labelled", message)))["event_id"]
    for line in commands("Try it") + commands("Models") + commands("Search") + commands("Operate"):
        if line.startswith("make ") or (line.startswith("curl ") and not shutil.which("curl")):
            continue
        output = await asyncio.to_thread(shell, line.replace("EVENT_ID", event_id), address, board.settings.data_dir)
        if "/search" in line:
            assert [item["id"] for item in json.decode(output)["items"]] == ["H-1"]
        elif output.startswith("HTTP/1.1 202"):
            event = await board.ended(json.decode(output.splitlines()[-1])["event_id"])
            event_id = event["event_id"]
            assert (event["status"], event["result"]["intent"]) == ("succeeded", "login_problem")
            assert event["result"]["reply"], "a stored reply"
        elif " send " in line:
            event_id = output.split()[1]


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl here")
async def test_a_key_as_printed_opens_the_door_until_it_is_revoked(board: Board) -> None:
    script = "\n".join(commands(KEYS)).replace("PREFIX", "$CALLBOARD_API_KEY")
    environ = {"DATABASE_URL": board.settings.database_url}
    done = await asyncio.to_thread(attempt, script, str(board.http.base_url), ROOT, **environ)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert '{"items":[],"next":null}' in done.stdout
    assert done.stdout.endswith(" is revoked\n")


async def test_the_four_files_make_an_event(settings: Settings, tmp_path: Path) -> None:
    assert {Path(name).parts[0] for name in PRINTED} == {"schemas", "prompts", "workers"}
    assert len(PRINTED) == 4
    copy = product_in(tmp_path / "clone")
    for name, text in PRINTED.items():
        assert not (copy / name).exists(), name
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(text, encoding="utf-8")
    lint = (sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"))
    code = [str(copy / name) for name in PRINTED if name.endswith(".py")]
    assert subprocess.run([*lint, *code], cwd=copy, capture_output=True, timeout=60).returncode == 0
    environ = {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url, "CALLBOARD_SIMULATE": "on"}
    with up_on(tmp_path, environ, copy) as up:
        await up.program.says(LAST_WORDS)
        send, draw, *_ = commands(FOUR)
        output = shell(send, up.address, up.data)
        assert re.search(r"^status +succeeded$", output, re.MULTILINE)
        result = json.decode(output[output.index("\nresult\n") + len("\nresult\n") :])
        assert (result["order_id"], result["because"]) == ("O-7", "simulated because")
        assert result["paid"] in (0.0, 19.9)
        await dead_above_the_limit(up)
        assert shell(draw, up.address, up.data).endswith("\njudge → decide\ndecide\n")


async def test_from_new_files_to_a_result(settings: Settings, tmp_path: Path) -> None:
    """As a new user goes: with `make up` running, no file of ours edited, nothing waited for but the programs."""
    copy = product_in(tmp_path / "clone")
    before = {file: file.read_bytes() for file in copy.rglob("*.*") if "__pycache__" not in file.parts}
    environ = {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url, "CALLBOARD_SIMULATE": "on"}
    with up_on(tmp_path, environ, copy) as up:
        await up.program.says(LAST_WORDS)
        *news, send = commands(FOUR)[2:]
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


def test_what_it_survives_is_the_whole_matrix_without_a_loss() -> None:
    told = list(rows("fault"))
    assert [row[0] for row in told] == [f"{number} · {what}" for number, what in MATRIX.items()]
    assert {(row[2], row[3]) for row in told} == {("0", "0")}


def test_the_make_targets_are_those_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", README)) <= targets
    assert {f"make {name}" for name in targets - {"help", "venv"}} == {row[0].strip("`") for row in rows("make")}


def test_the_commands_of_callboard_are_all_of_them() -> None:
    there = re.search(r"there are ([^;]+);", SECTIONS["Operate"])
    assert there
    assert set(re.findall(r"`(\w+)`", there[1])) == {entry.name for entry in COMMANDS}
    for row in rows("program"):
        assert row[0].strip("`").split()[1] in {entry.name for entry in COMMANDS}


def test_the_http_table_is_what_is_routed(settings: Settings) -> None:
    routed = {
        f"{method} {re.sub(r':[a-z]+}', '}', route.path)}"
        for route in create_app(settings).routes
        if isinstance(route, Route) and not route.path.startswith("/ui") and "asset" not in route.name
        for method in (route.methods or set()) - {"HEAD"}
        if route.path == "/" or not route.path.endswith("/")
    }
    assert {row[0].strip("`") for row in rows("HTTP")} == routed


@pytest.mark.parametrize("name", ["README.md", "deploy/README.md", "deploy/settings.md"])
def test_every_path_that_is_named_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    here = (ROOT, (ROOT / name).parent, ROOT / "workers" / "engine")
    named = (
        set(re.findall(r"`([\w./-]+(?:/|\.(?:py|md|toml|sql|sh|lock|example)))`", text)) - PRINTED.keys() - {"v2.md"}
    )
    assert named
    assert [each for each in sorted(named) if not any((folder / each).exists() for folder in here)] == []
    assert (ROOT / "Caddyfile").exists()
