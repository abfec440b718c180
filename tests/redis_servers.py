"""A redis-server with options of the test's own, beside the one that all tests share."""

import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.embedded.redis import _from_wheel
from tests.eventually import eventually
from tests.processes import free_port


class RedisServer(Struct, frozen=True):
    port: int
    socket: Path
    process: "subprocess.Popen[bytes]"

    def url(self, user: str = "", db: int = 0) -> str:
        return f"redis://{user}127.0.0.1:{self.port}/{db}"


@asynccontextmanager
async def redis_server(
    folder: Path, *options: str, environ: Mapping[str, str] | None = None
) -> AsyncIterator[RedisServer]:
    """On a free loopback port and a socket in `folder`; `environ` may name another one on PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **(environ or {})}
    program = shutil.which("redis-server", path=environment["PATH"]) or str(_from_wheel("redis-server"))
    port = free_port()
    command = [
        program,
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        str(folder),
        "--unixsocket",
        str(folder / "socket"),
    ]
    command += [] if "--port" in options else ["--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        await eventually(lambda: _answers(process, folder))
        yield RedisServer(port, folder / "socket", process)
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


async def _answers(process: "subprocess.Popen[bytes]", folder: Path) -> bool:
    assert process.poll() is None, (folder / "log").read_text()
    async with Redis(unix_socket_path=str(folder / "socket")) as client:
        try:
            return bool(await client.ping())
        except (RedisError, OSError) as error:
            return "Authentication required" in str(error)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that only who is given it trusts, and its key."""
    folder.mkdir(parents=True, exist_ok=True)
    made, key = folder / "tls.crt", folder / "tls.key"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    words += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(made)]
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)
    return made, key
