"""Debian's PgBouncer in front of a Postgres, as the package has it but for paths, port and password."""

import asyncio
import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import asyncpg

from service.embedded import Server
from tests.debian import libraries, unpacked
from tests.eventually import eventually
from tests.processes import free_port
from tests.second_postgres import sockets_of

PASSWORD: Final = "let-me-in"


def pgbouncer_in(folder: Path) -> Path:
    """The package and those libraries of its own that a machine may lack, unpacked; their names differ by release."""
    root = unpacked(folder, "pgbouncer")
    (package,) = (folder / "downloads").glob("pgbouncer_*.deb")
    told = subprocess.run(["dpkg-deb", "-f", package, "Depends"], capture_output=True, text=True, check=True).stdout
    for name in re.findall(r"lib(?:event|c-ares)[\w.+-]*", told):
        unpacked(folder / name, name)
        shutil.copytree(folder / name / "usr", root / "usr", dirs_exist_ok=True, symlinks=True)
    return root


@asynccontextmanager
async def pgbouncer(root: Path, server: Server, **changes: str) -> AsyncIterator[str]:
    """A running one for every database of `server`: its address up to the database's name. `changes`: of its file."""
    folder = root / f"run-{free_port()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    port = free_port()
    (folder / "userlist.txt").write_text(f'"callboard" "{PASSWORD}"\n')
    own = {
        "logfile": f"{folder}/log",
        "pidfile": f"{folder}/pid",
        "unix_socket_dir": "",
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "auth_file": f"{folder}/userlist.txt",
        **changes,
    }
    shipped = (root / "etc" / "pgbouncer" / "pgbouncer.ini").read_text()
    file = folder / "pgbouncer.ini"
    file.write_text(configured(shipped, own, f"* = host={sockets_of(server)} port=5432"))
    owner = Path(sockets_of(server)).stat()  # nobody else may come in by its socket, and PgBouncer refuses root
    process = subprocess.Popen(
        [root / "usr" / "sbin" / "pgbouncer", file],
        env={"LD_LIBRARY_PATH": libraries(root)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        user=owner.st_uid if os.geteuid() == 0 else None,
        group=owner.st_gid if os.geteuid() == 0 else None,
    )
    try:
        await eventually(lambda: _listens(process, port, folder / "log"))
        yield f"postgresql://callboard:{PASSWORD}@127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def configured(shipped: str, own: dict[str, str], databases: str) -> str:
    """The package's file with these settings in place of its own, and nothing else changed."""
    lines = [line for line in shipped.splitlines() if line.partition("=")[0].strip() not in own]
    lines.insert(lines.index("[databases]") + 1, databases)
    lines.insert(lines.index("[pgbouncer]") + 1, "\n".join(f"{name} = {value}" for name, value in own.items()))
    return "\n".join(lines) + "\n"


async def _listens(process: "subprocess.Popen[bytes]", port: int, log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"PgBouncer ended: {log.read_text() if log.exists() else ''}")
    with socket.socket() as probe:
        return await asyncio.to_thread(probe.connect_ex, ("127.0.0.1", port)) == 0


async def counted(server: Server, like: str = "callboard %") -> int:
    """How many connections our programs have at the server."""
    connection = await asyncpg.connect(server.url)
    try:
        found: int = await connection.fetchval(
            "select count(*) from pg_stat_activity where application_name like $1", like
        )
        return found
    finally:
        await connection.close()
