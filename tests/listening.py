"""An application on a free loopback port, in the test's own loop."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from workers.simulator.serve import Inside

STOP_S = 5


@asynccontextmanager
async def listening_on(app: ASGIApp, *, force: bool = False, **options: Any) -> AsyncIterator[str]:
    """`force`: at the end requests in hand are let alone; else they have STOP_S."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # without it, no TCP_NODELAY
    listening.bind(("127.0.0.1", 0))
    told = {"log_config": None, "access_log": False, "timeout_graceful_shutdown": STOP_S, **options}
    server = Inside(uvicorn.Config(app, **told))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        while not server.started and not serving.done():
            await asyncio.sleep(0.001)
        assert server.started, "it did not start"
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.end(force=force)
        await serving
