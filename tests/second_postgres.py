"""Another Postgres for a test, from the same binaries: with bounds of its own, or as a standby by pg_basebackup."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from service.embedded import Server, stop
from service.embedded import postgres as embedded
from service.embedded.data_dir import give, resolve_data_dir, socket_folder
from service.embedded.process import own

NAME: Final = "Postgres"


def sockets_of(server: Server) -> str:
    (folder,) = parse_qs(urlsplit(server.url).query)["host"]
    return folder


def database(server: Server, name: str, user: str = "callboard") -> str:
    """The address of a database of this server."""
    head, _, query = server.url.partition("?")
    return f"{head.partition('://')[0]}://{user}@/{name}?{query}"


@asynccontextmanager
async def second_postgres(
    folder: Path, settings: Mapping[str, str] | None = None, *, standby_of: Server | None = None
) -> AsyncIterator[Server]:
    """One with `settings` beside embedded.SETTINGS; `standby_of`: it begins as a copy of that one, and follows it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock, data_dir = own(folder, NAME), resolve_data_dir(folder)
    programs = embedded._programs(data_dir)
    if standby_of is None:
        await embedded._create(programs, data_dir)
    else:
        give(data_dir.data, data_dir.who)
        copy = [str(programs / "pg_basebackup"), "-h", sockets_of(standby_of), "-p", "5432", "-U", "callboard"]
        status = await embedded._finish([*copy, "-D", str(data_dir.data), "-R", "-X", "stream", "-c", "fast"], data_dir)
        assert status == 0, (data_dir.folder / "log").read_text()
        for path in data_dir.data.glob(".s.PGSQL*"):  # the other one's socket, copied with its data
            path.unlink()
    sockets = socket_folder(data_dir, embedded.SOCKET)
    command = [str(programs / "postgres"), "-D", str(data_dir.data), "-k", str(sockets), "-p", "5432"]
    command += [
        word for name, value in {**embedded.SETTINGS, **(settings or {})}.items() for word in ("-c", f"{name}={value}")
    ]
    process = await embedded._run(command, data_dir, sockets)
    server = Server(embedded._url(sockets), process.pid, process, data_dir.folder, embedded.ENDING, lock)
    try:
        yield server
    finally:
        await asyncio.shield(stop(server))
