"""`/metrics`, for Prometheus; and the count of the API's own requests."""

import time
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.door import door
from service.meters import OTHER, Labels, Meters

METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


async def metrics(request: Request) -> Response:
    """200 with what is left also while Postgres or Redis is away."""
    body, media_type = await door(request).measured.told(request.headers.get("accept", ""))
    return Response(body, media_type=media_type)


def counted(app: ASGIApp) -> ASGIApp:
    """Rate, errors and duration by the route's template: a path is anybody's text."""

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        meters: Meters = scope["state"]["door"].meters
        begun, status = time.perf_counter(), 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        meters.add("callboard_http_requests_in_flight")
        try:
            await app(scope, receive, sent)
        finally:
            meters.add("callboard_http_requests_in_flight", (), -1.0)
            labels = _route(scope)
            meters.observe("callboard_http_request_duration_seconds", time.perf_counter() - begun, labels)
            meters.add("callboard_http_requests_total", (*labels, f"{status // 100}xx"))

    return answered


def _route(scope: Scope) -> Labels:
    method = scope["method"] if scope["method"] in METHODS else OTHER
    return getattr(scope.get("route"), "path", "unmatched"), method
