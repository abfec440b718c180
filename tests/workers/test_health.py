"""`python -m workers health`: ready or not, in one sentence, soon, without the engine."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from service.core.settings import Settings
from tests.board import board_on
from tests.eventually import eventually
from tests.processes import free_port, run, started
from tests.test_programs import WORKER, environment
from workers.bootstrap import program
from workers.engine.supervisor import open_worker
from workers.health import ailing

HEALTH: Final = (*WORKER, "health")
HOST: Final = socket.gethostname()


async def asked(settings: Settings, *more: str) -> "subprocess.CompletedProcess[str]":
    return await asyncio.to_thread(run, (*HEALTH, *more), environment(settings))


async def test_a_worker_is_ready_until_it_stands_still_or_ends(settings: Settings, tmp_path: Path) -> None:
    none = await asked(settings)
    assert (none.returncode, none.stdout) == (1, "")
    assert re.fullmatch(rf"callboard worker: no worker of {re.escape(HOST)} holds a lease\..*\n", none.stderr)
    with started(WORKER, tmp_path / "worker", environment(settings)) as worker:
        await worker.says("worker ready")
        own = str(worker.process.pid)

        async def ready() -> bool:
            return (await asked(settings)).returncode == 0

        assert await eventually(ready)
        begun = time.monotonic()
        done = await asked(settings, own)
        print(f"health took {time.monotonic() - begun:.2f} s")
        assert (done.returncode, done.stdout) == (0, "callboard worker: ready\n")
        other = await asked(settings, "1")
        assert (other.returncode, "no worker 1 of" in other.stderr) == (1, True)
        worker.process.send_signal(signal.SIGSTOP)
        try:

            async def gone() -> str | None:
                done = await asked(settings, own)
                return done.stderr if done.returncode == 1 else None

            assert "the last one beat" in str(await eventually(gone, 20))
        finally:
            worker.process.send_signal(signal.SIGCONT)
        assert await eventually(ready), "it has registered anew"
        assert await worker.ends(signal.SIGTERM) == 0
    assert (await asked(settings)).returncode == 1


async def test_a_draining_worker_is_not_ready(settings: Settings) -> None:
    async with board_on(settings) as board:
        assert await ailing(settings, HOST, None) is None
        assert await ailing(settings, HOST, os.getpid()) is None
        board.workers[0].stopping.set()

        async def draining() -> bool:
            return "is draining" in (await ailing(settings, HOST, None) or "")

        assert await eventually(draining)


async def test_a_disconnected_worker_is_not_ready(settings: Settings) -> None:
    """Redis is away for it alone."""
    async with open_worker(program(replace(settings, redis_url=f"redis://127.0.0.1:{free_port()}/0"))):

        async def disconnected() -> bool:
            return "is disconnected" in (await ailing(settings, HOST, None) or "")

        assert await eventually(disconnected, 30)


async def test_a_postgres_that_stands_still_has_a_deadline(settings: Settings) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        hung = replace(settings, database_url=f"postgresql://x@127.0.0.1:{silent.getsockname()[1]}/x?sslmode=disable")
        begun = time.monotonic()
        assert "its lease could not be read" in (await ailing(hung, HOST, None) or "")
        assert time.monotonic() - begun < 6


def test_it_takes_a_pid_or_nothing(settings: Settings) -> None:
    done = run((*HEALTH, "me"), environment(settings))
    assert (done.returncode, done.stderr) == (2, "usage: python -m workers health [PID]\n")


def test_it_imports_no_engine_and_no_sdk() -> None:
    program = "import sys, workers.health; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    heavy = {"workers.engine", "workers.models", "workers.bootstrap", "anthropic", "openai", "arq", "starlette"}
    assert not heavy & set(process.stdout.split())


def test_without_an_address_it_says_so(tmp_path: Path) -> None:
    done = run(HEALTH, {"CALLBOARD_DATA_DIR": str(tmp_path)})
    assert (done.returncode, "No Postgres: set DATABASE_URL" in done.stderr) == (1, True)
