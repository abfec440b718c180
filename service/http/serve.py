"""The API's program: checked, then served until SIGTERM."""

import os
import signal
import sys

import uvicorn

from schemas.catalog import CatalogError
from service import failpoints
from service.cli.parts import check_port
from service.embedded import running
from service.errors import CallboardError, StartError
from service.http.app import create_app
from service.log import setup
from service.settings import Settings, load

BACKLOG = 2048
KEEP_ALIVE_S = 65


def main() -> int:
    """Exit status 0 after an orderly stop, 1 with one sentence where the boot can't go on."""
    setup()
    try:
        settings = running(load(os.environ))
        failpoints.check(settings)
        refuse_open_door(settings)
        check_port(settings)
        app = create_app(settings)
    except (CallboardError, CatalogError) as error:
        print(f"callboard api: {error}", file=sys.stderr)
        return 1
    for each in (signal.SIGTERM, signal.SIGINT):
        # When it has stopped in order, uvicorn raises the signal once more: no failure.
        signal.signal(each, lambda *_: sys.exit(0))
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.grace_s,
    )
    return 0


def refuse_open_door(settings: Settings) -> None:
    """Raises StartError: without keys nobody but this machine may come in."""
    if not settings.on_loopback:
        raise StartError(
            f"CALLBOARD_HOST={settings.host} would let anyone in: there are no keys yet. "
            "Use 127.0.0.1, behind a tunnel or a proxy."
        )
