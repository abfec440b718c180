"""A model that a test writes the lines of, behind Anthropic's protocol over real HTTP."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import uvicorn
from msgspec import json
from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.settings import Settings

Say = Callable[[str], Any]
"""From the request as it was sent to the reply, of the type asked for; None: the provider is down."""

HEAD: Final = {"id": "m", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn"}


class _Inside(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the test's."""
        yield


@asynccontextmanager
async def told_by(say: Say, settings: Settings) -> AsyncIterator[Settings]:
    """Settings under which this model answers."""

    async def answer(request: Request) -> Response:
        told = say((await request.body()).decode())
        if told is None:
            return Response(status_code=529)
        content = [{"type": "text", "text": json.encode(told).decode()}]
        whole = {**HEAD, "content": content, "usage": {"input_tokens": 7, "output_tokens": 3}}
        return Response(json.encode(whole), media_type="application/json")

    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # without it, no TCP_NODELAY
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    app = Starlette(routes=[Route("/v1/messages", answer, methods=["POST"])])
    server = _Inside(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        yield replace(settings, anthropic_api_key="dummy", anthropic_base_url=url, simulate="off")
    finally:
        server.should_exit = server.force_exit = True
        await serving
