"""A server as a child process: started, known again, ended."""

import asyncio
import fcntl
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import IO

from msgspec import Struct

from service.core.errors import StartError
from service.embedded.data_dir import Account, DataDir

log = logging.getLogger(__name__)

CHILD = Path(__file__).with_name("child.py")
LOG_MAX = 10_000_000
TAIL_MAX = 20_000
# A program that was found by asking for its version is started with the libraries that it was asked with.
LOADER = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")

Ending = tuple[tuple[signal.Signals, float], ...]  # each with the patience, in seconds, before the next


class Server(Struct, frozen=True):
    """A running server of ours. `folder` is where its data really is."""

    url: str
    pid: int
    process: subprocess.Popen[bytes]
    folder: Path
    ending: Ending
    lock: IO[str]


async def stop(server: Server) -> None:
    """Ends the server in order, harder as patience runs out; does nothing when it has ended."""
    try:
        await end(server.process, server.ending)
    finally:
        server.lock.close()


async def end(process: subprocess.Popen[bytes], ending: Ending) -> None:
    await _end(process.pid, lambda: process.poll() is not None, ending)


async def _end(pid: int, gone: Callable[[], bool], ending: Ending) -> None:
    for number, patience_s in ending:
        if gone():
            return
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        await until(gone, patience_s)


async def until(fact: Callable[[], bool], patience_s: float) -> bool:
    """Waits for `fact`, no longer than `patience_s`; tells whether it came."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + patience_s
    while not fact() and clock() < deadline:
        await asyncio.sleep(0.02)
    return fact()


def spawn(command: list[str], folder: Path, who: Account, ending: Ending) -> subprocess.Popen[bytes]:
    """Starts `command` as `who` in a session of its own, so that a terminal's Ctrl-C reaches us and not it.

    Call it from the main thread: Linux ends the child with the thread that started it.
    """
    ids = (os.getpid(), int(ending[0][0]), who.uid, who.gid)
    launcher = (sys.executable, "-I", "-S", str(CHILD), *map(str, ids))
    loader = {name: os.environ[name] for name in LOADER if name in os.environ}
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC", **loader}
    with log_file(folder).open("ab") as out:
        return subprocess.Popen(
            [*launcher, *command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


async def answering(
    command: list[str], data_dir: DataDir, ending: Ending, answers: Callable[[int], Awaitable[bool]], ready_s: float
) -> tuple[subprocess.Popen[bytes] | None, str]:
    """The server that `command` starts, once `answers` says so of its pid; else None and its last words."""
    clock = asyncio.get_running_loop().time
    deadline, since = clock() + ready_s, log_size(data_dir.folder)
    async with AsyncExitStack() as undo:
        process = spawn(command, data_dir.folder, data_dir.who, ending)
        undo.push_async_callback(end, process, ending)
        while process.poll() is None and clock() < deadline:
            if await answers(process.pid):
                undo.pop_all()
                return process, ""
            await asyncio.sleep(0.05)
    return None, last_words(data_dir.folder, since)


def log_file(folder: Path) -> Path:
    """The log of the server in `folder`; a long one has been put aside."""
    path = folder / "log"
    if path.exists() and path.stat().st_size > LOG_MAX:
        path.replace(folder / "log.old")
    return _closed(path)


def _closed(path: Path) -> Path:
    """Makes the file for us alone: a log quotes what was refused, and a lock is had by whoever can open it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    os.fchmod(descriptor, 0o600)
    os.close(descriptor)
    return path


def log_size(folder: Path) -> int:
    return log_file(folder).stat().st_size


def last_words(folder: Path, since: int) -> str:
    """What the server has written to its log since it was `since` bytes long."""
    with (folder / "log").open("rb") as written:
        written.seek(max(since, (folder / "log").stat().st_size - TAIL_MAX))
        return written.read().decode(errors="replace").strip()


def failure(name: str, folder: Path, words: str) -> StartError:
    """The last words of a server that did not start, as one sentence."""
    if "No space left on device" in words:
        return StartError(f"{name} can't start: the disk that holds {folder} is full. Make room, then start again.")
    signs = ("FATAL", "PANIC", "rror:", "ailed", "an't")
    lines = words.splitlines() or ["it said nothing"]
    line = ([text for text in lines if any(sign in text for sign in signs)] or lines)[-1].strip()
    return StartError(f"{name} did not start: {line} (more in {folder / 'log'})")


def own(folder: Path, name: str) -> IO[str]:
    """A lock on `folder` that ends with this process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = _closed(folder / "owner").open("a+", encoding="ascii")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip()
        lock.close()
        raise StartError(
            f"{name} in {folder} is in use by process {owner}: another `make up`? "
            "Stop that one, or set CALLBOARD_DATA_DIR to another folder."
        ) from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


async def end_leftover(name: str, note: Path, folder: Path, ending: Ending) -> None:
    """Ends the server of `folder` that outlived its parent. `note` begins with its pid."""
    pid = noted(note)
    if pid and str(folder) in command_line(pid):
        log.warning("Ending a %s (pid %d) left over in %s.", name, pid, folder)
        await _end(pid, lambda: str(folder) not in command_line(pid), ending)


def noted(note: Path) -> int:
    try:
        return int(note.read_text(encoding="ascii").split()[0])
    except (FileNotFoundError, ValueError, IndexError):
        return 0


def command_line(pid: int) -> str:
    """What process `pid` was started with; nothing when it is gone. A pid alone may be a stranger's by now."""
    if Path("/proc/self").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return ""
    listed = subprocess.run(
        ["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, timeout=5, check=False
    )
    return listed.stdout
