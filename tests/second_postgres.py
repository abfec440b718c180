"""Another Postgres for a test, from the same binaries: with bounds of its own, or as a standby by pg_basebackup."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from service.embedded import Server, stop
from service.embedded import postgres as embedded
from service.embedded.place import give, settle, socket_folder
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
    lock, place = own(folder, NAME), settle(folder)
    programs = embedded._programs(place)
    if standby_of is None:
        await embedded._create(programs, place)
    else:
        give(place.data, place.who)
        copy = [str(programs / "pg_basebackup"), "-h", sockets_of(standby_of), "-p", "5432", "-U", "callboard"]
        status = await embedded._finish([*copy, "-D", str(place.data), "-R", "-X", "stream", "-c", "fast"], place)
        assert status == 0, (place.folder / "log").read_text()
        for each in place.data.glob(".s.PGSQL*"):  # the other one's socket, copied with its data
            each.unlink()
    sockets = socket_folder(place, embedded.SOCKET)
    command = [str(programs / "postgres"), "-D", str(place.data), "-k", str(sockets), "-p", "5432"]
    command += [
        word for name, value in {**embedded.SETTINGS, **(settings or {})}.items() for word in ("-c", f"{name}={value}")
    ]
    process = await embedded._run(command, place, sockets)
    server = Server(embedded._url(sockets), process.pid, process, place.folder, embedded.ENDING, lock)
    try:
        yield server
    finally:
        await asyncio.shield(stop(server))
