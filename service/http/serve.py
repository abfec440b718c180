"""The API's program: checked, then served until SIGTERM."""

import asyncio
import logging
import os
import sys
from contextlib import suppress
from socket import socket

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from prompts import PromptError
from schemas.catalog import CatalogError
from service.access.keys import any_made
from service.core import failpoints
from service.core.errors import CallboardError, StartError, text_of
from service.core.log import setup
from service.core.postgres_errors import sentence
from service.core.postgres_preflight import check_all, connections_max
from service.core.preflight import check_port, preflight
from service.core.program import MISFIT, freeze_gc, leave, on_end
from service.core.servers import POSTGRES_ERRORS
from service.core.settings import Settings, load
from service.core.supervise import end_in_time
from service.embedded import running
from service.http.app import create_app
from service.http.connections import Connection, expire_all
from service.http.problem import problem

BACKLOG = 2048
KEEP_ALIVE_S = 65
EXPIRE_TICKS = 10
AGAIN = {"Retry-After": "1", "Connection": "close"}

log = logging.getLogger("callboard.http")


def main() -> int:
    """Exit status 0 after an orderly stop; with one sentence where the boot can't go on 1, MISFIT for a user's file."""
    setup()
    try:
        settings = running(load(os.environ))
        setup(secrets=settings.secrets)
        failpoints.check(settings)
        check_all(
            lambda: preflight(settings, "API"),
            lambda: refuse_open_door(settings),
            lambda: check_port(settings),
        )
        app = create_app(settings)
    except (CallboardError, CatalogError, PromptError) as error:
        print(f"callboard api: {error}", file=sys.stderr)
        return MISFIT if isinstance(error, CatalogError | PromptError) else 1
    on_end(leave)  # when it has stopped in order, uvicorn raises the signal once more: no failure
    config = uvicorn.Config(
        to_the_last(app),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.grace_s,
        http=Connection,
    )
    log.info("the API takes up to %d connections to Postgres", connections_max(settings, "API"))
    server = _Server(config, app, settings.lame_duck_s)
    server.run()
    return 0 if server.started else 1


def to_the_last(app: ASGIApp) -> ASGIApp:
    """Requests that are cut short when the grace time is over are told to come again: uvicorn would call it a 500."""

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:
            if scope["type"] != "http":
                raise
            with suppress(RuntimeError):  # an answer had begun
                await problem(Request(scope), 503, "not now: it stops", headers=AGAIN)(scope, receive, send)

    return answered


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: Starlette, lame_duck_s: int) -> None:
        super().__init__(config)
        self._app = app
        self._lame_duck_s = lame_duck_s

    async def main_loop(self) -> None:
        """Until it is told to stop, and then some: a proxy needs time to see that it is not ready any more."""
        freeze_gc()
        await super().main_loop()
        self._app.state.draining = True
        await asyncio.sleep(self._lame_duck_s)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if counter % EXPIRE_TICKS == 0:
            expire_all(self.server_state.connections, asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        end_in_time(self.config.timeout_graceful_shutdown or 0)
        self._app.state.stop()
        await super().shutdown(sockets)


def refuse_open_door(settings: Settings) -> None:
    """Raises StartError where others can reach an API that nobody has a key for; on loopback it logs a warning."""
    if settings.local_token and settings.on_loopback:
        return
    try:
        has_keys = asyncio.run(any_made(settings))
    except POSTGRES_ERRORS as error:  # then nobody gets in before it is back
        log.warning("%s: whether a key was made shows later: %s", sentence(error), text_of(error))
        return
    if not has_keys and settings.on_loopback:
        log.warning("no key was made yet: all but the health is refused. Make one with `callboard keys create`")
    elif not has_keys:
        raise StartError(
            f"CALLBOARD_HOST={settings.host} is open to others, and no key was made yet. "
            "Make one with `callboard keys create`, or use 127.0.0.1."
        )
