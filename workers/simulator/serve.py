"""The simulator on a loopback port, inside the loop of whoever needs it."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import uvicorn

from service.core.errors import StartError
from workers.simulator.app import create_app
from workers.simulator.behaviour import Behaviour

HOST: Final = "127.0.0.1"
BACKLOG: Final = 2048
STOP_S: Final = 5
AT_ONCE: Final = struct.pack("ii", 1, 0)


class Inside(uvicorn.Server):
    """In a loop that is somebody else's, as signals are. It ends at once: uvicorn looks every tenth of a second whether
    it is to, and then waits for another."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._over: Final = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def end(self, *, force: bool = False) -> None:
        """Requests in hand are finished within the grace time, unless by force."""
        self.should_exit, self.force_exit = True, force
        self._over.set()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self._over.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await asyncio.sleep(0)
        if self.server_state.tasks and not self.force_exit:
            timeout_s = self.config.timeout_graceful_shutdown
            _, late = await asyncio.wait(self.server_state.tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self.lifespan.shutdown()


class _Wire:
    """The port, the server that listens there, and the time for which there is to be none."""

    def __init__(self, port: int) -> None:
        self.bound = _bound(port)
        self.port: Final[int] = self.bound.getsockname()[1]
        self.server: Inside | None = None
        self.down_s = 0.0
        self.over: Final = asyncio.Event()

    def cut(self, client: Any, *, reset: bool) -> None:
        for transport in self._transports():
            if transport.get_extra_info("peername") == client:
                _reset(transport) if reset else transport.close()

    def down(self, for_s: float, client: Any) -> None:
        self.down_s = for_s
        if not self.server or self.server.should_exit:
            return
        for transport in self._transports():
            is_client = transport.get_extra_info("peername") == client
            transport.close() if is_client else _reset(transport)
        for server in self.server.servers:
            server.close()
        self.server.end(force=True)
        # Taken again at once, without listening: nobody else is to answer in its place.
        self.bound = _bound(self.port)

    def stop(self) -> None:
        self.over.set()
        if self.server:
            self.server.end()

    def _transports(self) -> list[asyncio.Transport]:
        return [connection.transport for connection in self.server.server_state.connections] if self.server else []


@contextlib.asynccontextmanager
async def running_simulator(port: int = 0, behaviour: Behaviour | None = None) -> AsyncIterator[str]:
    """Yield the base URL of a simulator that runs until the context ends; port 0 takes a free one."""
    wire = _Wire(port)
    config = uvicorn.Config(
        create_app(behaviour or Behaviour(), wire),
        lifespan="off",
        log_config=None,
        access_log=False,
        date_header=False,
        timeout_graceful_shutdown=STOP_S,
    )
    if not wire.down_s:
        # It listens already: who connects before the server has begun to serve waits for it.
        wire.bound.listen(BACKLOG)
    serving = asyncio.create_task(_serve(config, wire))
    try:
        yield f"http://{HOST}:{wire.port}"
    finally:
        wire.stop()
        await serving


async def _serve(config: uvicorn.Config, wire: _Wire) -> None:
    """One server after another, with the time between them in which nobody listens."""
    while not wire.over.is_set():
        if wire.down_s:
            await _until(wire.over, wire.down_s)
            wire.down_s = 0.0
        else:
            wire.server = Inside(config)
            await wire.server.serve(sockets=[wire.bound])
    wire.bound.close()


async def _until(over: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await over.wait()


def _reset(transport: asyncio.Transport) -> None:
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    transport.abort()


def _bound(port: int) -> socket.socket:
    # With the protocol said outright: asyncio sets TCP_NODELAY only then, and without it some replies take 40 ms more.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((HOST, port))
    except OSError as error:
        bound.close()
        raise StartError(f"The simulator can't listen on {HOST}:{port}: {error.strerror}.") from error
    bound.setblocking(False)
    return bound
