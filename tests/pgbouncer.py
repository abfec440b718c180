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

from service.embedded import Server
from tests.debian import unpacked
from tests.eventually import eventually
from tests.processes import free_port
from tests.second_postgres import sockets_of

PASSWORD: Final = "let-me-in"


def pgbouncer_in(folder: Path) -> Path:
    """The package, unpacked, and those of the libraries it names that this machine lacks."""
    root = unpacked(folder, "pgbouncer")
    (package,) = (folder / "downloads").glob("pgbouncer_*.deb")
    missing = re.findall(
        r"^\s*(lib[a-z]+)\S* => not found", _output("ldd", root / "usr" / "sbin" / "pgbouncer"), re.MULTILINE
    )
    named = re.findall(r"lib[\w.+-]+", _output("dpkg-deb", "-f", package, "Depends"))
    # libcares.so.2 is in libc-ares2, or in libcares2: that differs by release.
    wanted = [name for name in named if name.replace("-", "").startswith(tuple(missing))]
    if wanted:
        unpacked(folder / "libraries", *wanted)
        shutil.copytree(folder / "libraries" / "usr", root / "usr" / "own", symlinks=True)
    return root


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


class PgBouncer:
    """A PgBouncer that can be ended and comes back at the same port; `address`: up to the database's name."""

    def __init__(self, root: Path, file: Path, port: int, owner: os.stat_result) -> None:
        self.address: Final = f"postgresql://callboard:{PASSWORD}@127.0.0.1:{port}"
        self._root: Final = root
        self._file: Final = file
        self._port: Final = port
        self._owner: Final = owner  # of the socket behind it: nobody else may come in there, and PgBouncer refuses root
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        as_root = os.geteuid() == 0
        self._process = subprocess.Popen(
            [self._root / "usr" / "sbin" / "pgbouncer", self._file],
            env={"LD_LIBRARY_PATH": _libraries(self._root)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=self._owner.st_uid if as_root else None,
            group=self._owner.st_gid if as_root else None,
        )
        await eventually(self._listens)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def _listens(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            log = self._file.with_name("log")
            raise RuntimeError(f"PgBouncer ended: {log.read_text() if log.exists() else ''}")
        with socket.socket() as probe:
            return await asyncio.to_thread(probe.connect_ex, ("127.0.0.1", self._port)) == 0


@asynccontextmanager
async def pgbouncer(root: Path, server: Server, **changes: str) -> AsyncIterator[PgBouncer]:
    """A running one for every database of `server`. `changes`: of the package's file."""
    port = free_port()
    folder = root / f"run-{port}"
    folder.mkdir()
    folder.chmod(0o777)
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
    bouncer = PgBouncer(root, file, port, Path(sockets_of(server)).stat())
    try:
        await bouncer.start()
        yield bouncer
    finally:
        bouncer.kill()


def configured(shipped: str, own: dict[str, str], databases: str) -> str:
    """The package's file with these settings in place of its own, and nothing else changed."""
    lines = [line for line in shipped.splitlines() if line.partition("=")[0].strip() not in own]
    lines.insert(lines.index("[databases]") + 1, databases)
    lines.insert(lines.index("[pgbouncer]") + 1, "\n".join(f"{name} = {value}" for name, value in own.items()))
    return "\n".join(lines) + "\n"


def _libraries(root: Path) -> str:
    return ":".join(sorted({str(path.parent) for path in (root / "usr" / "own").rglob("*.so*")}))
