"""`/healthz`, `/readyz`, `/workers`."""

import asyncio
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

import sql
from service.core.release import release
from service.http.app_state import fetch, raw, reply, state_of
from service.http.problem import problem

CHECK_TIMEOUT_S: Final = 2.0
SQL: Final = sql.queries("health")


async def healthz(_: Request) -> Response:
    """The process answers: no I/O."""
    return reply({"status": "ok", "version": release()})


async def readyz(request: Request) -> Response:
    """An event could be stored, and this API is not about to stop. Redis away is degraded."""
    if getattr(request.app.state, "draining", False):
        return problem(request, 503, "not now: it stops", headers={"Retry-After": "1"})
    why_not, degraded = await asyncio.gather(state_of(request).readiness.why_not(), _degraded(request))
    if why_not:
        return problem(request, 503, why_not, headers={"Retry-After": "1"})
    return reply({"status": "ready", "version": release(), "degraded": degraded})


async def _degraded(request: Request) -> list[dict[str, Any]]:
    """What of Redis does not work now."""
    app = state_of(request)
    await app.owner.probe(app.redis)
    trouble = app.owner.state.trouble
    return [{"part": "redis", "reason": trouble.reason, "since": trouble.since}] if trouble else []


async def list_workers(request: Request) -> Response:
    rows = await fetch(request, SQL["workers"])
    return reply({"items": [{**row, "breakers": raw(row["breakers"])} for row in rows]})
