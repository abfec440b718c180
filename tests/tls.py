"""An authority of the test's own, and servers with certificates that it has signed."""

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import asyncpg
from msgspec import Struct

from service.embedded.data_dir import resolve_data_dir
from tests.debian import without
from tests.eventually import eventually
from tests.processes import free_port
from tests.redis_servers import redis_server

PASSWORD: Final = "of-the-vendor"
NAME: Final = "localhost"


class Certified(Struct, frozen=True):
    """`authority`: the file that clients are given; `made` and `key`: the server's, for the name localhost alone."""

    authority: Path
    made: Path
    key: Path


def certified(folder: Path) -> Certified:
    folder.mkdir(parents=True)
    authority, signing = folder / "authority.crt", folder / "authority.key"
    made, key = folder / "server.crt", folder / "server.key"
    _openssl("/CN=an authority", signing, authority, "basicConstraints=critical,CA:TRUE")
    signed = ("-CA", str(authority), "-CAkey", str(signing))
    _openssl(f"/CN={NAME}", key, made, f"subjectAltName=DNS:{NAME}", "basicConstraints=CA:FALSE", *signed)
    return Certified(authority, made, key)


def _openssl(subject: str, key: Path, made: Path, *words: str) -> None:
    extensions = [part for word in words if "=" in word for part in ("-addext", word)]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", subject]
    command += [*extensions, *(word for word in words if "=" not in word), "-keyout", str(key), "-out", str(made)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


@asynccontextmanager
async def tls_redis(folder: Path, by: Certified, environ: dict[str, str]) -> AsyncIterator[int]:
    """Debian's Redis, which speaks TLS alone; its port."""
    port = free_port()
    files = ("--tls-cert-file", str(by.made), "--tls-key-file", str(by.key), "--tls-auth-clients", "no")
    options = ("--tls-port", str(port), "--port", "0", *files, "--requirepass", PASSWORD)
    async with redis_server(folder, *options, environ=environ):
        yield port


@asynccontextmanager
async def tls_postgres(folder: Path, by: Certified) -> AsyncIterator[int]:
    """Debian's own Postgres, without pgvector, that takes nobody without TLS and a password; its port."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        without("Debian's Postgres is not installed: apt-get install postgresql")
    folder.mkdir()
    who, port, data = resolve_data_dir(folder).who, free_port(), folder / "data"
    given = {"user": who.uid, "group": who.gid, "extra_groups": []} if os.geteuid() == 0 else {}
    (folder / "password").write_text(PASSWORD)
    for source, name in ((by.made, "server.crt"), (by.key, "server.key")):
        (folder / name).write_bytes(source.read_bytes())
    for path in (folder, *folder.iterdir()):
        os.chown(path, who.uid, who.gid)
        path.chmod(0o700)
    initdb = [programs[-1] / "initdb", "-D", data, "-U", "callboard", "-E", "UTF8", "--locale=C", "-A", "scram-sha-256"]
    command = [*initdb, f"--pwfile={folder / 'password'}"]
    subprocess.run(command, check=True, capture_output=True, timeout=60, cwd=folder, **given)  # type: ignore[call-overload]
    (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
    settings = {"ssl": "on", "ssl_cert_file": f"{folder}/server.crt", "ssl_key_file": f"{folder}/server.key"}
    settings |= {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": "", "fsync": "off"}
    words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(
            [programs[-1] / "postgres", "-D", data, *words], stdout=log, stderr=log, cwd=folder, **given
        )  # type: ignore[call-overload]
    try:
        await eventually(lambda: _refuses(port))
        yield port
    finally:
        running.terminate()
        running.wait(20)


async def _refuses(port: int) -> bool:
    """Whether it answers, if only to refuse who comes without TLS."""
    try:
        await asyncpg.connect(host="127.0.0.1", port=port, user="callboard", ssl=False, timeout=5)
    except asyncpg.InvalidAuthorizationSpecificationError:
        return True
    except (OSError, asyncpg.CannotConnectNowError):
        return False
    raise AssertionError("it takes somebody without TLS")
