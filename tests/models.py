"""A model that a test writes the lines of, behind Anthropic's protocol over real HTTP."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from msgspec import json
from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.core.settings import Settings
from tests.listening import listening_on

Say = Callable[[str], Any]
"""From the request as it was sent to the reply, of the type asked for; None: the provider is down."""

HEAD: Final = {"id": "m", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn"}


def with_keys(settings: Settings, **values: str) -> Settings:
    """The same settings, with these variables of providers, by their names in small letters."""
    return replace(settings, providers={**settings.providers, **{name.upper(): values[name] for name in values}})


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

    app = Starlette(routes=[Route("/v1/messages", answer, methods=["POST"])])
    async with listening_on(app, force=True, lifespan="off") as url:
        yield with_keys(replace(settings, simulate="off"), anthropic_api_key="dummy", anthropic_base_url=url)
