"""Heads and connections of those who mean no good, on raw sockets, to an API that is a process of its own."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import httpx
import pytest
from msgspec import Struct, json

from service.core.log import INVALID
from service.core.settings import Settings
from service.http.app import create_app
from service.http.connections import FILES_KEPT, HEAD_MAX, HEAD_S, Connection, expire_all
from tests.eventually import eventually
from tests.keys import AS_UP_DOES, AT_HOME, AUTHORIZED
from tests.listening import listening_on
from tests.processes import Program, free_port, started

PIECE: Final = b"X-Much: " + b"a" * 1_000 + b"\r\n"
BEGINNING: Final = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


class Api(Struct, frozen=True):
    port: int
    program: Program

    @property
    def memory_mb(self) -> float:
        status = Path(f"/proc/{self.program.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    async def is_well(self) -> bool:
        async with httpx.AsyncClient(headers=AT_HOME, timeout=5) as http:
            return (await http.get(f"http://127.0.0.1:{self.port}/healthz")).status_code == 200


@asynccontextmanager
async def api_of(settings: Settings, folder: Path, *wrapper: str) -> AsyncIterator[Api]:
    port = free_port()
    addresses = {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url}
    environ = {**addresses, **AS_UP_DOES, "CALLBOARD_PORT": str(port)}
    with started((*wrapper, sys.executable, "-m", "service"), folder / "api.log", environ) as program:
        api = Api(port, program)

        async def is_up() -> bool:
            with suppress(httpx.TransportError):
                return await api.is_well()
            return False

        await eventually(is_up, 30)
        yield api


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def answered(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The status of an answer behind which the connection is closed, and its body."""
    async with asyncio.timeout(HEAD_S + 10):
        answer = await reader.read()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


async def test_a_head_has_a_bound_and_a_deadline(settings: Settings, tmp_path: Path) -> None:
    async with api_of(settings, tmp_path) as api, connected(api.port) as (slow, slowly):
        slowly.write(BEGINNING)
        before_mb = api.memory_mb

        async def sends_much(n: int) -> None:
            async with connected(api.port) as (reader, writer):
                with suppress(ConnectionError):
                    writer.write(BEGINNING)
                    for _ in range(1_000):  # a megabyte, were it taken
                        writer.write(PIECE if n % 2 else b"a" * len(PIECE))  # many headers, or a single one
                        await writer.drain()
                with suppress(ConnectionError):
                    status, body = await answered(reader)
                    assert status == 431
                    assert f"larger than {HEAD_MAX} bytes" in json.decode(body)["detail"]

        await asyncio.gather(*(sends_much(n) for n in range(40)))
        assert api.memory_mb - before_mb < 40
        assert await api.is_well()

        for headers, status in ((60, 200), (70, 431)):  # at once, whole
            async with connected(api.port) as (reader, writer):
                writer.write(BEGINNING + b"Connection: close\r\n" + PIECE * headers + b"\r\n")
                assert (await answered(reader))[0] == status
        async with httpx.AsyncClient(headers=AT_HOME, base_url=f"http://127.0.0.1:{api.port}") as http:
            large = {"type": "message.labelled", "data": {"text": "a" * 50_000, "label": "b" * 200}}
            for _ in range(3):  # on one connection; a body is no head
                answer = await http.post("/events", content=json.encode(large) + b" " * 300_000)
                assert answer.status_code != 431
        for _ in range(50):  # who sends nothing that is a request does not fill the log
            async with connected(api.port) as (reader, writer):
                writer.write(b"NONE OF IT\r\n\r\n")
                assert (await answered(reader))[0] == 400
        assert 1 <= api.program.output.count(INVALID) <= 3
        status, body = await answered(slow)
        assert status == 408
        assert "did not arrive within 10 s" in json.decode(body)["detail"]


async def test_connections_that_are_held_keep_nobody_out(settings: Settings, tmp_path: Path) -> None:
    """Of so few files only some may be connections; others' requests are answered all the while."""
    few = f'ulimit -n {FILES_KEPT + 60}; exec "$@"'
    async with api_of(settings, tmp_path, "sh", "-c", few, "sh") as api:
        held: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        try:
            for n in range(300):
                held.append(await asyncio.open_connection("127.0.0.1", api.port))
                held[-1][1].write(BEGINNING)
                if n % 20 == 0:
                    assert await api.is_well()
            assert await api.is_well()
        finally:
            for _, writer in held:
                writer.close()
        assert "Too many open files" not in api.program.output


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    """The connections that a server in this loop has made."""
    found: list[Connection] = []
    make = Connection.connection_made

    def noted(self: Connection, transport: asyncio.Transport) -> None:
        make(self, transport)
        found.append(self)

    monkeypatch.setattr(Connection, "connection_made", noted)
    return found


@asynccontextmanager
async def here(settings: Settings) -> AsyncIterator[int]:
    async with listening_on(create_app(settings), http=Connection) as url:
        yield int(url.rpartition(":")[2])


async def test_only_what_waits_for_a_head_is_late(settings: Settings, made: list[Connection]) -> None:
    async with here(settings) as port, AsyncExitStack() as stack:
        half, silent, kept = [await stack.enter_async_context(connected(port)) for _ in range(3)]
        half[1].write(BEGINNING)
        kept[1].write(BEGINNING + b"\r\n")
        assert (await kept[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        now = asyncio.get_running_loop().time()
        expire_all(made, now + HEAD_S - 1)
        assert not any(each.refused for each in made)
        expire_all(made, now + HEAD_S + 1)
        assert (await answered(half[0]))[0] == 408
        assert await silent[0].read() == b""
        kept[1].write(BEGINNING + b"\r\n")
        assert b"200" in await kept[0].readuntil(b"\r\n\r\n"), "one that was kept open between requests goes on"


REQUEST: Final = (
    b"POST /events HTTP/1.1\r\nHost: localhost\r\n"
    + AUTHORIZED
    + b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
)


@pytest.mark.parametrize("pieces", [1, 3, 50])
async def test_what_is_right_is_answered_however_it_is_cut(settings: Settings, pieces: int) -> None:
    """Three requests on one connection, one behind the other without waiting."""
    whole = REQUEST * 3
    size = -(-len(whole) // pieces)
    async with here(settings) as port, connected(port) as (reader, writer):
        for begin in range(0, len(whole), size):
            writer.write(whole[begin : begin + size])
            await writer.drain()
        for _ in range(3):
            async with asyncio.timeout(10):
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                await reader.readexactly(length)
            assert head.startswith(b"HTTP/1.1 422"), "no type"
