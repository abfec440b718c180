"""Errors are RFC 9457 problems, all of them."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import asyncpg
from msgspec import Struct, json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match

from schemas.text import BadEvent, Trouble
from service.core.errors import Outage, OverLimit, TooMany, Unavailable, text_of
from service.core.postgres_errors import sentence
from service.core.servers import POSTGRES_ERRORS, postgres_passes
from service.intake.intake import Conflict

PROBLEM: Final = "application/problem+json"

log = logging.getLogger("callboard.http")


class Problem(Struct, frozen=True):
    """RFC 9457, with the path of what does not fit in `errors`."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[Trouble]


def problem(
    request: Request, status: int, detail: str, path: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    errors = [Trouble(path, detail)] if path else []
    body = Problem("about:blank", HTTPStatus(status).phrase, status, detail, request.url.path, errors)
    return Response(json.encode(body), status, dict(headers or {}), media_type=PROBLEM)


async def on_error(request: Request, error: Exception) -> Response:
    match error:
        case BadEvent():
            if error.status != 413:
                return problem(request, error.status, error.message, error.path)
            request.state.app_state.meters.add("callboard_refused_total", ("sizes", "caller"))
            return problem(request, 413, error.message, error.path, {"Connection": "close"})
        case Conflict():
            return problem(request, 409, str(error), "$.id", {"Location": f"/events/{error.stored.event_id}"})
        case OverLimit() | Unavailable() | Outage():
            return _later(request, error)
        case HTTPException(status_code=405):
            return _no_such_method(request)
        case HTTPException():
            return problem(request, error.status_code, error.detail, headers=error.headers)
        case asyncpg.DataError():
            log.warning("what %s asked for can't be looked up: %s", request.url.path, type(error).__name__)
            detail = "what was asked for holds a NUL character, or a time before the year 1 or behind 9999 (UTC)"
            return problem(request, 400, detail)
        case ClientDisconnect():  # before its request was whole: nobody reads this
            return Response(status_code=400)
    if postgres_passes(error):  # what Postgres says is for the log
        why = sentence(error, request.state.app_state.pool)
        log.warning("%s: %s", why, text_of(error))
        return problem(request, 503, f"not now: {why}", headers={"Retry-After": "1"})
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    # The server hangs up behind it: without a word of that, the client's next request would be lost.
    return problem(request, 500, "a bug in Callboard; the log has it", headers={"Connection": "close"})


def _later(request: Request, error: OverLimit | Unavailable | Outage) -> Response:
    headers = {"Retry-After": str(1 if isinstance(error, Outage) else error.retry_after_s)}
    if isinstance(error, OverLimit):
        request.state.app_state.meters.add("callboard_over_limit_total", (error.limit,))
    if isinstance(error, OverLimit | TooMany):
        return problem(request, 429, str(error), headers=headers)
    return problem(request, 503, f"not now: {error}", headers=headers)


def _no_such_method(request: Request) -> Response:
    """Starlette names only the methods of the first route that has the path."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    allowed = ", ".join(sorted({method for route in routes for method in route.methods}))
    return problem(request, 405, f"this takes {allowed}, not {request.method}", headers={"Allow": allowed})


HANDLERS: Final = dict.fromkeys(
    (BadEvent, Conflict, OverLimit, Unavailable, Outage, HTTPException, ClientDisconnect, *POSTGRES_ERRORS, Exception),
    on_error,
)
