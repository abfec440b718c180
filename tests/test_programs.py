"""The programs alone (contract: Programs), as real processes against the servers of the test: each does its part."""

import json
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Final

import httpx
import pytest

from service.core.settings import Settings
from tests.board import ENDED, TICKET
from tests.eventually import eventually
from tests.keys import AS_UP_DOES, AT_HOME
from tests.processes import CALLBOARD, START_S, Program, free_port, run, started

API: Final = (sys.executable, "-m", "service")
WORKER: Final = (sys.executable, "-m", "workers")
UVICORN: Final = (sys.executable, "-m", "uvicorn", "--factory", "service:create_app")
ARQ: Final = (sys.executable, "-m", "arq", "workers.WorkerSettings")
PROGRAMS: Final = pytest.mark.parametrize(
    "command", [API, WORKER, UVICORN, ARQ], ids=["service", "workers", "uvicorn", "arq"]
)


def environment(settings: Settings, **more: str) -> dict[str, str]:
    addresses = {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url}
    return {**addresses, **AS_UP_DOES, "CALLBOARD_DATA_DIR": settings.data_dir, **more}


async def succeeds(http: httpx.AsyncClient, api: Program, worker: Program) -> None:
    """A ticket goes in through the one program and out through the other."""

    async def there() -> bool:
        assert (api.process.poll(), worker.process.poll()) == (None, None)
        try:
            return bool((await http.get("/workers")).json()["items"])
        except httpx.TransportError:
            return False

    await eventually(there, START_S)
    event_id = (await http.post("/events", json={"type": "ticket.opened", "data": TICKET})).json()["event_id"]

    async def ended() -> str | None:
        status = str((await http.get(f"/events/{event_id}")).json()["status"])
        return status if status in ENDED else None

    assert await eventually(ended) == "succeeded"


async def test_ours_do_their_part_and_end_with_0(settings: Settings, tmp_path: Path) -> None:
    port = free_port()
    environ = environment(settings, CALLBOARD_PORT=str(port))
    with (
        started((*CALLBOARD, "api"), tmp_path / "api", environ) as api,
        started((*CALLBOARD, "worker"), tmp_path / "worker", environ) as worker,
    ):
        async with httpx.AsyncClient(headers=AT_HOME, base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
            await succeeds(http, api, worker)
            assert (await http.get("/readyz")).json()["degraded"] == []
            assert await worker.ends(signal.SIGTERM) == 0
            assert (await http.get("/workers")).json()["items"] == []
        assert await api.ends(signal.SIGTERM) == 0
        assert "Traceback" not in api.output + worker.output
        assert [json.loads(line)["level"] for line in worker.output.splitlines()] == ["info", "info"], worker.output


async def test_an_api_that_is_told_to_stop_still_serves_though_it_is_not_ready(
    settings: Settings, tmp_path: Path
) -> None:
    port = free_port()
    environ = environment(settings, CALLBOARD_PORT=str(port), CALLBOARD_LAME_DUCK_S="2")
    with started((*CALLBOARD, "api"), tmp_path / "api", environ) as api:
        async with httpx.AsyncClient(headers=AT_HOME, base_url=f"http://127.0.0.1:{port}", timeout=10) as http:

            async def says(status: int) -> bool:
                try:
                    return (await http.get("/readyz")).status_code == status
                except httpx.TransportError:
                    return False

            await eventually(lambda: says(200), START_S)
            api.process.send_signal(signal.SIGTERM)
            await eventually(lambda: says(503))
            assert (await http.post("/events", json={"type": "ticket.opened", "data": TICKET})).status_code == 202
        assert await api.ends() == 0


async def test_those_of_uvicorn_and_arq_do_too(settings: Settings, tmp_path: Path) -> None:
    port = free_port()
    environ = environment(settings)
    with (
        started((*UVICORN, "--port", str(port)), tmp_path / "api", environ) as api,
        started(ARQ, tmp_path / "worker", environ) as worker,
    ):
        async with httpx.AsyncClient(headers=AT_HOME, base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
            await succeeds(http, api, worker)
            # Their own way: uvicorn raises the signal again when it has stopped in order.
            assert await worker.ends(signal.SIGTERM) in (0, -signal.SIGTERM)
            assert (await http.get("/workers")).json()["items"] == [], "the worker has left in order"
        assert await api.ends(signal.SIGTERM) in (0, -signal.SIGTERM)
        assert "Traceback" not in api.output + worker.output


@PROGRAMS
def test_a_wrong_setting_is_one_sentence(command: tuple[str, ...]) -> None:
    done = run(command, {"CALLBOARD_PROT": "8001"})
    assert done.returncode != 0
    assert "CALLBOARD_PROT is not a setting. deploy/env.example lists them all." in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", [API, WORKER])
@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({}, "No Postgres: set DATABASE_URL, or start `make up`"),
        ({"DATABASE_URL": "postgresql://127.0.0.1/x"}, "No Redis: set REDIS_URL, or start `make up`"),
        ({"CALLBOARD_GRACE_S": "soon"}, "CALLBOARD_GRACE_S=soon does not fit"),
    ],
)
def test_ours_say_it_without_a_traceback(
    command: tuple[str, ...], environ: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    refused(command, {"CALLBOARD_DATA_DIR": str(tmp_path), **environ}, sentence)


@PROGRAMS
def test_what_is_wrong_with_postgres_is_said_without_a_traceback(
    command: tuple[str, ...], settings: Settings, tmp_path: Path
) -> None:
    """Each fault is a line, at the boot of each program, and no line holds a password."""
    url = "postgresql://u:let-me-in@127.0.0.1:5432/db?sslmode=on&schema=mine"
    done = run(command, {**environment(settings), "DATABASE_URL": url, "CALLBOARD_DATA_DIR": str(tmp_path)})
    assert done.returncode != 0
    lines = done.stderr.splitlines()[-2:]
    assert "DATABASE_URL: schema is no parameter of Postgres' addresses. Leave it out." in lines[0]
    assert "DATABASE_URL: sslmode is one of disable, allow" in lines[1]
    missing = settings.database_url.replace("/test_", "/no_such_", 1)
    done = run(command, {**environment(settings), "DATABASE_URL": missing})
    assert done.returncode != 0
    assert "does not exist. Look at DATABASE_URL." in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert "let-me-in" not in done.stderr


@pytest.mark.parametrize("command", [(*CALLBOARD, "migrate"), (*CALLBOARD, "up"), (*CALLBOARD, "keys", "list")])
def test_commands_say_what_is_wrong_with_postgres(command: tuple[str, ...], settings: Settings) -> None:
    environ = environment(settings, CALLBOARD_PORT=str(free_port()))
    for url, words in {
        "postgresql://u:let-me-in@h/db?schema=mine": "DATABASE_URL: schema is no parameter of Postgres' addresses.",
        "postgresql://u:let/me-in@h/db": "has to be percent-encoded",
    }.items():
        done = run(command, {**environ, "DATABASE_URL": url})
        assert done.returncode != 0
        assert words in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert "me-in" not in done.stderr + done.stdout


@pytest.mark.parametrize("simulate", ["off", "auto", ""])
@pytest.mark.parametrize("command", [WORKER, (*WORKER, "check"), ARQ])
def test_no_model_that_could_answer_stops_a_worker(
    command: tuple[str, ...], simulate: str, settings: Settings, tmp_path: Path
) -> None:
    """Where nobody has asked for simulated answers, none are given: an empty file of a key is no key."""
    (tmp_path / "key").touch()
    sentence = 'No provider of the model alias "fast" can be asked: set OPENAI_API_KEY or ANTHROPIC_API_KEY'
    refused(
        command, environment(settings, CALLBOARD_SIMULATE=simulate, OPENAI_API_KEY_FILE=f"{tmp_path}/key"), sentence
    )


def test_a_check_says_that_a_worker_could_start_and_starts_none(settings: Settings) -> None:
    done = run((*WORKER, "check"), environment(settings, CALLBOARD_SIMULATE="on"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "callboard worker: could start\n", "")


def test_without_keys_the_api_stays_on_loopback(settings: Settings) -> None:
    refused(API, environment(settings, CALLBOARD_HOST="0.0.0.0"), "CALLBOARD_HOST=0.0.0.0 is open to others")


async def test_without_keys_and_token_the_api_says_how_one_is_made(settings: Settings, tmp_path: Path) -> None:
    port = free_port()
    environ = environment(settings, CALLBOARD_PORT=str(port), CALLBOARD_LOCAL_TOKEN="")
    with started(API, tmp_path / "api", environ) as api:
        await api.says("no key was made yet: all but the health is refused. Make one with `callboard keys create`")
        async with httpx.AsyncClient(headers=AT_HOME, base_url=f"http://127.0.0.1:{port}", timeout=10) as http:

            async def told() -> list[int]:
                try:
                    return [(await http.get(path)).status_code for path in ("/healthz", "/readyz", "/events")]
                except httpx.TransportError:
                    return []

            assert await eventually(told, START_S) == [200, 200, 401]


def test_a_busy_port_stops_the_api(settings: Settings) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        refused(API, environment(settings, CALLBOARD_PORT=str(port)), f"Port {port} on 127.0.0.1 can't be had")


def refused(command: tuple[str, ...], environ: dict[str, str], sentence: str) -> None:
    """Status 1 and one line, no more."""
    done = run(command, environ)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"callboard (api|worker): {re.escape(sentence)}.*\n", done.stderr), done.stderr


def test_migrate_brings_a_schema_up_to_date_and_may_be_repeated(settings: Settings) -> None:
    for _ in range(2):
        done = run((*CALLBOARD, "migrate"), environment(settings))
        assert (done.returncode, done.stdout) == (0, "the schema is up to date\n"), done.stderr
