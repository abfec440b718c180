"""`callboard up` as a user runs it: a real process with real servers, from the first start to the last signal."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from msgspec import json
from msgspec.structs import replace

from service.cli.up import seed
from service.core.settings import Settings
from tests.board import ENDED, Board
from tests.eventually import eventually
from tests.keys import TOKEN, bearer, make_key
from tests.processes import LAST_WORDS, ROOT, UP, Up, all_gone, alone, descendants, free_port, product_in, run, up_on
from tests.servers import open_folder

MESSAGE: Final = {"text": "Where is my parcel?", "label": "order_status"}


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    with open_folder() as folder, up_on(folder, {}) as running:
        asyncio.run(running.program.says(LAST_WORDS))
        yield running


@pytest.fixture
async def http(up: Up) -> AsyncIterator[httpx.AsyncClient]:
    async with up.client() as client:
        yield client


async def post(http: httpx.AsyncClient, kind: str, data: dict[str, str], **attributes: str) -> str:
    response = await http.post("/events", json={"type": kind, "data": data, **attributes})
    assert response.status_code == 202, response.text
    return str(response.json()["event_id"])


async def ended(http: httpx.AsyncClient, event_id: str, timeout_s: float = 20.0) -> dict[str, Any]:
    async def fact() -> dict[str, Any] | None:
        shown: dict[str, Any] = (await http.get(f"/events/{event_id}")).json()
        return shown if shown["status"] in ENDED else None

    result = await eventually(fact, timeout_s)
    assert result is not None
    return result


def shell(command: str) -> str:
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, env=alone({}), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def printed(up: Up, label: str) -> str:
    """The command printed behind `label`, with the lines it goes on on."""
    text = up.program.output.replace("\\\n", " ")
    match = re.search(rf"^  {label} +(?:\S+\n +)?(.*)$", text, re.MULTILINE)
    assert match, text
    return match[1]


def test_it_says_where_it_is_and_how_to_go_on(up: Up) -> None:
    output = up.program.output
    assert f"Callboard is up at {up.address}" in output
    assert re.search(r"Redis +/\S+/redis\.sock\n", output)
    assert "simulated: no provider key is set" in output
    assert up.environ["CALLBOARD_DATA_DIR"] in output
    assert "uvicorn" not in output
    assert "Traceback" not in output


def test_the_printed_send_line_gives_a_real_intent_and_a_stored_reply(up: Up) -> None:
    output = shell(printed(up, "send"))
    assert "status    succeeded" in output
    result = json.decode(output[output.index("\nresult\n") + len("\nresult\n") :])
    assert (result["intent"], result["route"]) == ("login_problem", "answer")
    assert result["reply"]
    assert "reply" in result["simulated"]


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl here")
async def test_the_printed_curl_line_gives_a_succeeded_event(up: Up, http: httpx.AsyncClient) -> None:
    output = shell(printed(up, "curl"))
    assert output.startswith("HTTP/1.1 202 ")
    event = await ended(http, json.decode(output.splitlines()[-1])["event_id"])
    assert (event["status"], event["result"]["intent"]) == ("succeeded", "login_problem")


async def test_the_printed_redis_line_gives_a_succeeded_event(up: Up, http: httpx.AsyncClient) -> None:
    entry = shell(printed(up, "Redis")).strip()

    async def fact() -> str | None:
        items = (await http.get("/events", params={"type": "ticket.opened"})).json()["items"]
        return next((str(item["event_id"]) for item in items if item["id"].endswith(f"/{entry}")), None)

    event_id = await eventually(fact)
    assert event_id is not None
    event = await ended(http, event_id)
    assert (event["status"], event["result"]["intent"]) == ("succeeded", "login_problem")


async def test_a_killed_worker_is_started_again_and_events_go_on(up: Up, http: httpx.AsyncClient) -> None:
    (worker,) = (await http.get("/workers")).json()["items"]
    assert worker["pid"] in descendants(up.pid)
    os.kill(worker["pid"], signal.SIGKILL)
    event_id = await post(http, "message.labelled", MESSAGE)
    assert (await ended(http, event_id))["status"] == "succeeded"
    assert "the worker had ended with status -9 and starts again" in up.program.output


@pytest.mark.parametrize(
    ("environ", "status", "sentence"),
    [
        ({"CALLBOARD_SIMULATE": "off"}, 1, "no model can answer: set ANTHROPIC_API_KEY, OPENAI_API_KEY"),
        ({"CALLBOARD_PROT": "8001"}, 2, "CALLBOARD_PROT is not a setting"),
        ({"CALLBOARD_PORT": "80000"}, 2, "CALLBOARD_PORT=80000 does not fit"),
        ({"CALLBOARD_PORT_FILE": "/no/such/file"}, 2, "CALLBOARD_PORT_FILE=/no/such/file can't be read"),
    ],
)
def test_what_can_not_be_is_one_sentence(environ: dict[str, str], status: int, sentence: str, tmp_path: Path) -> None:
    refused(run(UP, {"CALLBOARD_DATA_DIR": str(tmp_path), **environ}), status, sentence)
    assert list(tmp_path.iterdir()) == []


def test_a_busy_port_is_one_sentence(up: Up, tmp_path: Path) -> None:
    port = up.environ["CALLBOARD_PORT"]
    done = run(UP, {"CALLBOARD_DATA_DIR": str(tmp_path), "CALLBOARD_PORT": port})
    refused(done, 1, f"Port {port} on 127.0.0.1 can't be had")


def test_a_second_one_on_the_same_data_is_one_sentence(up: Up) -> None:
    done = run(UP, {**up.environ, "CALLBOARD_PORT": str(free_port())})
    refused(done, 1, f"is in use by process {up.pid}")


def refused(done: "subprocess.CompletedProcess[str]", status: int, sentence: str) -> None:
    assert (done.returncode, done.stdout) == (status, "")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


async def test_interrupted_while_it_starts_it_leaves_nothing_behind() -> None:
    with open_folder() as folder, up_on(folder, {}) as starting:
        children = await eventually(lambda: asyncio.to_thread(descendants, starting.pid))
        assert await starting.program.ends(signal.SIGINT) == 0
        await all_gone(children)
        assert LAST_WORDS not in starting.program.output


async def test_with_addresses_given_nothing_is_embedded_and_a_changed_file_is_taken(
    settings: Settings, tmp_path: Path
) -> None:
    copy = product_in(tmp_path / "clone")
    environ = {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url, "CALLBOARD_SIMULATE": "on"}
    with up_on(tmp_path, environ, copy) as running:
        await running.program.says(LAST_WORDS)
        assert len(descendants(running.pid)) == 2, "an API and a worker, no servers"
        assert [path.name for path in Path(running.data).iterdir()] == ["token"]
        async with running.client() as http:
            assert await labelled(http) == "order_status"
            node = copy / "workers" / "nodes" / "triage.py"
            source = node.read_text(encoding="utf-8")
            node.write_text(source.replace("Learned(example_id, message.label)", "Learned(example_id, 'changed')"))
            await running.program.says("workers/nodes/triage.py changed: workers start again")
            await eventually(lambda: labelled(http, "changed"), 30)


async def test_without_a_token_it_starts_where_keys_are_in_use(settings: Settings, tmp_path: Path) -> None:
    """With a key that may put no documents, no examples go in, and it says so."""
    key = await make_key(settings, "read")
    environ = {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url, "CALLBOARD_SIMULATE": "on"}
    with up_on(tmp_path, {**environ, "CALLBOARD_API_KEY": key}, ROOT, "--no-token") as running:
        output = await running.program.says(LAST_WORDS)
        assert "No examples were put into the collection `seed`" in output
        assert key[11:] not in output
        assert f"page      {running.address}/\n" in output
        assert not Path(running.data).exists()
        async with httpx.AsyncClient(base_url=running.address, headers=bearer(TOKEN)) as http:
            assert (await http.get("/workers")).status_code == 401


async def test_the_printed_page_signs_in_and_nobody_else_can_read_the_token(up: Up) -> None:
    file = Path(up.data) / "token"
    assert file.stat().st_mode & 0o777 == 0o600
    token = file.read_text(encoding="ascii").strip()
    address = f"{up.address}/?token={token}"
    assert f"  page      {address}\n" in up.program.output
    async with httpx.AsyncClient(follow_redirects=True) as browser:
        assert (await browser.get(f"{up.address}/")).url.path == "/login"
        page = await browser.get(address)
        assert (page.status_code, str(page.url)) == (200, f"{up.address}/")
        assert "A worker simulates the models' answers." in page.text
        assert (await browser.get(f"{up.address}/workers")).json()["items"][0]["simulated"] is True
    output = up.program.output
    assert output.count(token) == 1, "in the address that is printed, in no line of the log"


async def test_a_database_that_somebody_brings_gets_no_simulated_answers(settings: Settings, tmp_path: Path) -> None:
    environ = {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url}
    done = run(UP, {"CALLBOARD_DATA_DIR": str(tmp_path / "data"), **environ})
    refused(done, 1, "no model can answer: set ANTHROPIC_API_KEY, OPENAI_API_KEY")


async def test_the_examples_go_in_with_a_key_that_may_put_documents(
    board: Board, capsys: pytest.CaptureFixture[str]
) -> None:
    known = replace(board.settings, port=board.http.base_url.port or 0, local_token="")
    for scopes in ((), ("ingest", "read")):
        api_key = await make_key(board.settings, *scopes) if scopes else ""
        await seed(replace(known, api_key=api_key))
        assert "No examples were put into the collection `seed`" in capsys.readouterr().err
    key = await make_key(board.settings, "documents", "read")
    await seed(replace(known, api_key=key))
    assert capsys.readouterr().err == ""
    (row,) = await board.sql("select count(*), min(metadata ->> 'source') as source from documents")
    assert (row["count"], row["source"]) == (60, f"key {key[:11]}")


async def labelled(http: httpx.AsyncClient, wanted: str = "order_status") -> str:
    event = await ended(http, await post(http, "message.labelled", MESSAGE))
    assert event["result"]["label"] == wanted
    return wanted


async def test_however_it_ends_no_child_is_left_and_the_data_stay(up: Up, http: httpx.AsyncClient) -> None:
    """Last in this file: it ends what the others share."""
    first = await post(http, "message.labelled", MESSAGE)
    children = descendants(up.pid)
    assert len(children) > 3, "servers, an API and a worker"
    assert await up.program.ends(signal.SIGTERM) == 0
    await all_gone(children)

    folder = Path(up.environ["CALLBOARD_DATA_DIR"]).parent
    for number in (signal.SIGKILL, signal.SIGINT):
        with up_on(folder, {}) as again:
            await again.program.says(LAST_WORDS)
            async with again.client() as client:
                assert (await ended(client, first))["status"] == "succeeded"
            children = descendants(again.pid)
            if number != signal.SIGKILL:
                assert await again.program.ends(number) == 0
            elif sys.platform == "linux":
                assert await again.program.ends(number) == -number
                await all_gone(children, 10)
