"""Our programs as real processes: started, heard, ended, and none of them left."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
from msgspec import Struct

from service.access.local_token import local_token
from tests.eventually import eventually
from tests.keys import bearer

ROOT: Final = Path(__file__).parents[1]
CALLBOARD: Final = (sys.executable, "-c", "from service.cli import main; main()")
UP: Final = (*CALLBOARD, "up")
LAST_WORDS: Final = "Ctrl-C ends it all; the data stays."
PORT_MAX: Final = 55_535
NO_DATA: Final = Path("/nonexistent/callboard")
START_S: Final = 60.0
END_S: Final = 80.0  # a worker's grace time and the patience with Postgres, one after the other
HUNG: Final = "the end took too long"


class Program:
    """A running program; what it says on both outputs goes to a file."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process: Final = process
        self.log: Final = log

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")

    async def says(self, words: str, timeout_s: float = START_S) -> str:
        """All it has said, once that holds `words`."""

        async def fact() -> bool:
            over = self.process.poll() is not None
            if over and words not in self.output:
                raise RuntimeError(f"it ended with status {self.process.returncode} and said: {self.output}")
            return words in self.output

        await eventually(fact, timeout_s)
        return self.output

    async def ends(self, number: signal.Signals | None = None) -> int:
        """Its exit status, after it was sent the signal `number`."""
        if number is not None:
            self.process.send_signal(number)
        try:
            await eventually(lambda: _true(self.process.poll() is not None), END_S)
        except AssertionError:
            raise AssertionError(f"it had not ended after {END_S:g} s; it said: {self.output[-4000:]}") from None
        assert HUNG not in self.output, self.output[-4000:]
        return int(self.process.returncode)


@contextmanager
def started(command: tuple[str, ...], log: Path, environ: Mapping[str, str], folder: Path = ROOT) -> Iterator[Program]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, env=alone(environ), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        yield Program(process, log)
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Up(Struct, frozen=True):
    """A `callboard up`, on a port and a folder of its own."""

    program: Program
    address: str
    environ: dict[str, str]

    @property
    def pid(self) -> int:
        return self.program.process.pid

    @property
    def data(self) -> str:
        return self.environ["CALLBOARD_DATA_DIR"]

    def client(self) -> httpx.AsyncClient:
        """One that has the token of its data folder, which is there when it is up."""
        return httpx.AsyncClient(base_url=self.address, timeout=10, headers=bearer(local_token(Path(self.data))))


@contextmanager
def up_on(folder: Path, environ: Mapping[str, str], at: Path = ROOT, *options: str) -> Iterator[Up]:
    """One that begins; when it is up, it has said LAST_WORDS."""
    port = str(free_port())
    own = {"CALLBOARD_DATA_DIR": str(folder / "data"), "CALLBOARD_PORT": port, **environ}
    with started((*UP, *options), folder / f"up-{port}.log", own, at) as program:
        yield Up(program, f"http://127.0.0.1:{port}", own)


def product_in(folder: Path) -> Path:
    """A copy of the product to change files in."""
    for name in ("prompts", "schemas", "service", "sql", "workers"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def mypy_cache_in(folder: Path) -> None:
    """What `make check` has found out of the libraries, if it has run here: it spares most of the time."""
    if (ROOT / ".mypy_cache").exists():
        shutil.copytree(ROOT / ".mypy_cache", folder / ".mypy_cache")


def run(
    command: tuple[str, ...], environ: Mapping[str, str], folder: Path = ROOT, stdin: str = ""
) -> "subprocess.CompletedProcess[str]":
    """In this checkout without what `make up` left there: its token would be sent by a command that has no key."""
    if folder == ROOT:
        environ = {"CALLBOARD_DATA_DIR": str(NO_DATA), **environ}
    return subprocess.run(
        command, cwd=folder, env=alone(environ), input=stdin, capture_output=True, text=True, timeout=START_S
    )


def alone(environ: Mapping[str, str]) -> dict[str, str]:
    """Nothing of the caller's environment but what finds programs."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "LANG": "C.UTF-8", **environ}


def free_port() -> int:
    """One up to PORT_MAX: a Redis of a cluster wants the port ten thousand higher, too."""
    port = PORT_MAX + 1
    while port > PORT_MAX:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
    return port


def descendants(pid: int) -> set[int]:
    """The processes that `pid` started, and those that they did."""
    parents = _parents()
    found = {pid}
    while more := {each for each, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


async def all_gone(pids: set[int], timeout_s: float = END_S) -> None:
    await eventually(lambda: _true(not pids & _parents().keys()), timeout_s)


def _parents() -> dict[int, int]:
    """The parent of each process; those that are dead and only not fetched yet don't count."""
    rows = _from_proc() if Path("/proc/self/stat").exists() else _from_ps()
    return {int(pid): int(parent) for pid, parent, state in rows if not state.startswith("Z")}


def _from_proc() -> Iterator[Sequence[str]]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:2]
        except OSError:  # it has just ended
            continue
        yield path.parent.name, parent, state


def _from_ps() -> Iterator[Sequence[str]]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True)
    return (line.split() for line in listed.stdout.splitlines())


async def _true(fact: bool) -> bool:
    return fact
