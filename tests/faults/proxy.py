"""A TCP proxy whose weather a test makes: between one program and one server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, Literal

Mode = Literal["pass", "cut", "delay", "blackhole", "deaf", "half_open"]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Target = Callable[[], Awaitable[Streams]]

CHUNK: Final = 65_536
CONNECT_TIMEOUT_S: Final = 5.0


class Proxy:
    """`port` on loopback forwards to wherever `target` connects.

    Modes: `pass`; `cut`: every connection is reset, new ones too; `delay`: each piece comes `delay_s()` late;
    `blackhole`: pieces wait, both ways, until the mode changes, as they do when packets are lost; `deaf`: requests
    arrive, replies are thrown away (the connection is reset when the mode changes); `half_open`: the server's side is
    closed, the program's stays open and silent.
    """

    def __init__(self, target: Target) -> None:
        self._target: Final = target
        self._pairs: Final[set[Pair]] = set()
        self._changed = asyncio.Event()
        self.mode: Mode = "pass"
        self.accepted = 0  # connections, ever
        self.delay_s: Callable[[], float] = lambda: 0.0
        self.port = 0

    def turn(self, mode: Mode, delay_s: Callable[[], float] | None = None) -> None:
        """Change the weather, for the connections there are and for new ones."""
        self.mode = mode
        self.delay_s = delay_s or (lambda: 0.0)
        self._changed.set()
        self._changed = asyncio.Event()
        for each in list(self._pairs):
            if mode == "cut" or (each.spoilt and mode != "deaf"):
                each.reset()
            elif mode == "half_open":
                each.leave()

    async def clear(self) -> None:
        """Return while pieces may pass."""
        while self.mode in ("blackhole", "half_open"):
            await self._changed.wait()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = Pair(self, reader, writer)
        self._pairs.add(pair)
        self.accepted += 1
        try:
            if self.mode == "cut":
                return
            await self.clear()
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                pair.server = await self._target()
            await pair.run()
        except (OSError, TimeoutError):
            return
        finally:
            pair.reset()
            self._pairs.discard(pair)


class Pair:
    """One connection of a program and the one to the server that belongs to it."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy: Final = proxy
        self._client: Final = (reader, writer)
        self.server: Streams | None = None
        self.spoilt = False

    async def run(self) -> None:
        assert self.server is not None
        ways = (
            asyncio.create_task(self._flow(self._client[0], self.server[1])),
            asyncio.create_task(self._flow(self.server[0], self._client[1], replies=True)),
        )
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if self._proxy.mode == "half_open":
                await self._proxy.clear()
        finally:
            for each in ways:
                each.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _flow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool = False) -> None:
        while piece := await reader.read(CHUNK):
            await self._proxy.clear()
            if replies and self._proxy.mode == "deaf":
                self.spoilt = True
                continue
            if self._proxy.mode == "delay":
                await asyncio.sleep(self._proxy.delay_s())
            writer.write(piece)
            await writer.drain()

    def leave(self) -> None:
        if self.server is not None:
            self.server[1].transport.abort()

    def reset(self) -> None:
        for _, writer in filter(None, (self._client, self.server)):
            with suppress(OSError):
                writer.transport.abort()


@asynccontextmanager
async def proxy_to(target: Target) -> AsyncIterator[Proxy]:
    proxy = Proxy(target)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.turn("cut")
        await server.wait_closed()
