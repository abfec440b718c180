"""What a developer needs at 3 a.m., on the log and the terminal of a real `callboard up`."""

import asyncio
import os
import pty
import re
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.board import ENDED
from tests.eventually import eventually
from tests.processes import CALLBOARD, LAST_WORDS, Up, alone, descendants, product_in, run, up_on
from tests.servers import open_folder

EVENTS: Final = """
from schemas import Event


class Slept(Event, tag="odd.slept", frozen=True):
    seconds: float


class Stopped(Event, tag="odd.stopped", frozen=True):
    pass
"""
NODES: Final = """
import asyncio
import time

from schemas.events.odd import Slept, Stopped


async def odd(event: Slept) -> None:
    time.sleep(event.seconds)


async def stop(event: Stopped) -> str:
    found = "before"
    breakpoint()
    found += ", behind"
    await asyncio.sleep(0.01)
    return found
"""
PIPELINES: Final = """
from schemas.events.odd import Slept, Stopped
from workers.kit import Pipeline, Retry
from workers.nodes.odd import odd, stop

odds = Pipeline(on=Slept, flow=[odd])
stops = Pipeline(on=Stopped, flow=[stop], timeout_s=1, limits_s={stop: 0.5}, retry=Retry(attempts=1))
"""
FILES: Final = {
    "schemas/events/odd.py": EVENTS,
    "workers/nodes/odd.py": NODES,
    "workers/pipelines/odd.py": PIPELINES,
}


@contextmanager
def odd_up(*options: str) -> Iterator[tuple[Up, Path]]:
    with open_folder() as folder:
        copy = product_in(folder / "clone")
        for name, text in FILES.items():
            (copy / name).write_text(text, encoding="utf-8")
        with up_on(folder, {}, copy, *options) as running:
            asyncio.run(running.program.says(LAST_WORDS))
            yield running, copy


@pytest.fixture(scope="module")
def up() -> Iterator[tuple[Up, Path]]:
    with odd_up() as running:
        yield running


@pytest.fixture(scope="module")
def up_without_workers() -> Iterator[tuple[Up, Path]]:
    with odd_up("--workers", "0") as running:
        yield running


@pytest.fixture
async def http(up: tuple[Up, Path]) -> AsyncIterator[httpx.AsyncClient]:
    async with up[0].client() as client:
        yield client


async def send(http: httpx.AsyncClient, kind: str, data: Mapping[str, Any]) -> str:
    response = await http.post("/events", json={"type": kind, "data": data})
    assert response.status_code == 202, response.text
    return str(response.json()["event_id"])


async def ended(http: httpx.AsyncClient, event_id: str, timeout_s: float = 20.0) -> dict[str, Any]:
    async def fact() -> dict[str, Any] | None:
        shown: dict[str, Any] = (await http.get(f"/events/{event_id}")).json()
        return shown if shown["status"] in ENDED else None

    result = await eventually(fact, timeout_s)
    assert result is not None
    return result


async def test_a_step_that_blocks_the_loop_is_named_with_its_line(up: tuple[Up, Path], http: httpx.AsyncClient) -> None:
    """Nine seconds: longer than a read of Redis waits, whose time-out is then no news."""
    before = len(up[0].program.output)
    assert (await ended(http, await send(http, "odd.slept", {"seconds": 9})))["status"] == "succeeded"
    await up[0].program.says("the loop stood still for ")
    await ended(http, await send(http, "odd.slept", {"seconds": 0}))
    output = up[0].program.output[before:]
    line = NODES.splitlines().index("    time.sleep(event.seconds)") + 1
    location = rf"in step odd \(workers/nodes/odd\.py:{line}\); blocking code belongs into asyncio\.to_thread"
    assert len(re.findall(rf"the loop stood still for (8\.9|9\.\d) s {location}", output)) == 1, output
    assert "imeout" not in output, output


async def test_a_breakpoint_without_a_terminal_is_passed_over(up: tuple[Up, Path], http: httpx.AsyncClient) -> None:
    event = await ended(http, await send(http, "odd.stopped", {}))
    assert (event["status"], event["result"]) == ("succeeded", "before, behind")
    line = NODES.splitlines().index("    breakpoint()") + 1
    output = await up[0].program.says(f"breakpoint() at workers/nodes/odd.py:{line} is passed over")
    assert "Run `callboard up --workers 0`, and `callboard worker` in a terminal" in output


BROKEN: Final = [
    ("workers/nodes/odd.py", "\nasync def odd(event:\n", r"workers/nodes/odd\.py:2 can't be loaded: SyntaxError: .+"),
    ("schemas/events/odd.py", "Even\n", r"schemas/events/odd\.py:1 can't be loaded: NameError: name 'Even'"),
]


@pytest.mark.parametrize(("name", "text", "sentence"), BROKEN, ids=["node", "event"])
async def test_a_file_that_does_not_load_is_one_sentence_until_it_is_mended(
    up: tuple[Up, Path], http: httpx.AsyncClient, name: str, text: str, sentence: str
) -> None:
    running, copy = up
    before, good = len(running.program.output), (copy / name).read_text(encoding="utf-8")
    programs = 2 if name.startswith("schemas/") else 1
    (copy / name).write_text(text, encoding="utf-8")
    try:
        await eventually(lambda: _times(running, before, "starts again when a file changes", programs), 40)
        output = running.program.output[before:]
        assert len(re.findall(sentence, output)) == programs, output
        assert "Traceback" not in output
        assert not {pid for pid in descendants(running.pid) if _runs(pid, "workers")}, "none tries again by itself"
    finally:
        (copy / name).write_text(good, encoding="utf-8")
    await eventually(lambda: _answers(http), 40)
    assert (await ended(http, await send(http, "odd.slept", {"seconds": 0}), 40))["status"] == "succeeded"
    assert len(re.findall(sentence, running.program.output[before:])) == programs


async def _times(running: Up, before: int, words: str, times: int) -> bool:
    return running.program.output[before:].count(words) >= times


async def _answers(http: httpx.AsyncClient) -> bool:
    with suppress(httpx.TransportError):
        return (await http.get("/readyz")).status_code == 200
    return False


def _runs(pid: int, module: str) -> bool:
    listed = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return listed.stdout.strip().endswith(f"-m {module}")


async def test_without_a_worker_send_and_wait_says_so(up_without_workers: tuple[Up, Path]) -> None:
    running, copy = up_without_workers
    assert "none: run `.venv/bin/callboard worker` in another terminal" in running.program.output
    sending = ("send", "odd.slept", "--data", '{"seconds":0}', "--wait", "--timeout", "1", "--url", running.address)
    done = await asyncio.to_thread(run, (*CALLBOARD, *sending), running.environ, copy)
    assert done.returncode == 3
    said, end = done.stderr.splitlines()
    assert "is stored. No worker is running. Start one with `callboard worker` or `callboard up`" in said
    assert "was not run within 1 s: No worker is running." in end


class Terminal:
    """A program whose terminal is ours."""

    def __init__(self, command: tuple[str, ...], environ: Mapping[str, str], folder: Path) -> None:
        self._ours, theirs = pty.openpty()
        os.set_blocking(self._ours, False)
        self.process: Final = subprocess.Popen(
            command, cwd=folder, env=alone(environ), stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        self.shown = ""

    async def shows(self, words: str) -> str:
        async def fact() -> bool:
            with suppress(BlockingIOError, OSError):
                self.shown += os.read(self._ours, 65_536).decode(errors="replace")
            return words in self.shown

        await eventually(fact, 60)
        return self.shown

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        os.close(self._ours)


async def test_a_breakpoint_in_a_terminal_stops_there_and_costs_no_attempt(up_without_workers: tuple[Up, Path]) -> None:
    """It stands for longer than the time limits of the attempt and of the step, and than a lease."""
    running, copy = up_without_workers
    terminal = Terminal((*CALLBOARD, "worker"), running.environ, copy)
    try:
        async with running.client() as http:
            event_id = await send(http, "odd.stopped", {})
            before = await terminal.shows("(Pdb)")
            (worker,) = (await http.get("/workers")).json()["items"]
            since = datetime.fromisoformat(worker["beat_at"])
            await eventually(lambda: _beats(http, worker["worker"], since + timedelta(seconds=7)), 40)
            terminal.type("p found\n")
            await terminal.shows("'before")
            terminal.type("c\n")
            event = await ended(http, event_id)
            assert (event["status"], event["attempts"], event["result"]) == ("succeeded", 1, "before, behind")
            shown = await terminal.shows("the worker stood in a debugger for ")
            assert "stood still" not in shown[len(before) :]
            (same,) = (await http.get("/workers")).json()["items"]
            assert same["worker"] == worker["worker"], "its lease was never lost"
    finally:
        terminal.close()


async def _beats(http: httpx.AsyncClient, worker: str, at: datetime) -> bool:
    items = (await http.get("/workers")).json()["items"]
    return any(item["worker"] == worker and datetime.fromisoformat(item["beat_at"]) >= at for item in items)
