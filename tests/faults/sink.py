"""The outside, as the programs under test see it: a model provider and a web hook, both owned by the test."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.listening import listening_on
from workers.simulator.app import create_app
from workers.simulator.behaviour import Behaviour

MARK: Final = re.compile(rb"<<([0-9a-f-]{36})/(\d+)/(\w+)>>")


class Called(Struct):
    """One call of a model, from its arrival on; `done_at` is when the reply was handed over."""

    event_id: str
    claim: int
    step: str
    at: float
    done_at: float | None = None


class Effect(Struct, frozen=True):
    """One POST to the web hook."""

    key: str
    claim: int
    at: float
    body: Any = None


async def _nothing(place: str, call: Called) -> None:
    return


class Sink:
    """`calls` and `effects` survive whatever happens to the programs. `latency_s()` is how long a model thinks,
    `token_s` how long each piece of a stream takes; `at(place, call)` is awaited where a call has "arrived", and where
    it is "answered"; `fault(call)`: the simulator's, which it has, or nothing."""

    def __init__(self) -> None:
        self.calls: Final[list[Called]] = []
        self.effects: Final[list[Effect]] = []
        self.latency_s: Callable[[], float] = lambda: 0.02
        self.token_s = 0.0
        self.at: Callable[[str, Called], Awaitable[None]] = _nothing
        self.fault: Callable[[Called], str] = lambda _: ""
        self.url = ""


@asynccontextmanager
async def open_sink() -> AsyncIterator[Sink]:
    sink = Sink()
    app = Starlette(
        routes=[
            Route("/effects", _hook(sink), methods=["POST"]),
            Mount("/", _noting(sink, create_app(Behaviour(latency_ms=0)))),
        ]
    )
    # What it hangs up on is an outage to the programs, and no fault of a row.
    async with listening_on(app, force=True, lifespan="off", timeout_keep_alive=300) as sink.url:
        yield sink


def _hook(sink: Sink) -> Callable[[Request], Any]:
    async def hook(request: Request) -> Response:
        try:
            body = await request.json()
        except ClientDisconnect:  # its sender is gone: nothing was said
            return Response(status_code=400)
        sink.effects.append(Effect(request.headers["idempotency-key"], body["claim"], time.time(), body))
        return Response(status_code=202)

    return hook


def _noting(sink: Sink, model: ASGIApp) -> ASGIApp:
    """The simulator, with a log that names event, claim and step: the prompt carries them. It is not told these."""

    async def noted(scope: Scope, receive: Receive, send: Send) -> None:
        body = await Request(scope, receive).body()
        found = MARK.search(body)
        assert found, body
        event_id, claim, step = found[1].decode(), int(found[2]), found[3].decode()
        if not claim:  # the prompt is the same in each claim: they are told apart by their number
            claim = 1 + sum((each.event_id, each.step) == (event_id, step) for each in sink.calls)
        call = Called(event_id, claim, step, time.time())
        sink.calls.append(call)
        await sink.at("arrived", call)

        async def again() -> Message:
            return {"type": "http.request", "body": MARK.sub(b"", body), "more_body": False}

        async def slowly(message: Message) -> None:
            if message.get("more_body") and sink.token_s:
                await asyncio.sleep(sink.token_s)
            await send(message)

        await asyncio.sleep(sink.latency_s())
        told = [(b"x-callboard-fault", fault.encode())] if (fault := sink.fault(call)) else []
        await model({**scope, "headers": [*scope["headers"], *told]}, again, slowly)
        call.done_at = time.time()
        await sink.at("answered", call)

    return noted
