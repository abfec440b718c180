"""The simulator on a loopback port, inside the loop of whoever needs it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Final

import uvicorn

from service.errors import StartError
from workers.simulator.app import create_app

HOST: Final = "127.0.0.1"
BACKLOG: Final = 2048
STOP_S: Final = 5


class _Inside(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the host's."""
        yield


@contextlib.asynccontextmanager
async def running_simulator(port: int = 0, latency_s: float = 0.02) -> AsyncIterator[str]:
    """Yield the base URL of a simulator that runs until the context ends; port 0 takes a free one."""
    listening = _listen(port)
    config = uvicorn.Config(
        create_app(latency_s),
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=STOP_S,
    )
    server = _Inside(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        # It listens already: who connects before the server has begun to serve waits for it.
        yield f"http://{HOST}:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


def _listen(port: int) -> socket.socket:
    # With the protocol said outright: asyncio sets TCP_NODELAY only then, and without it some replies take 40 ms more.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
    except OSError as error:
        listening.close()
        raise StartError(f"The simulator can't listen on {HOST}:{port}: {error.strerror}.") from error
    listening.listen(BACKLOG)
    listening.setblocking(False)
    return listening
