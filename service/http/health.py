"""`/healthz`, `/readyz`, `/workers`."""

import asyncio
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

import sql
from service.http.door import door, fetch, raw, reply
from service.http.problem import problem
from service.migrate import pending
from service.release import release
from service.resources import POSTGRES_ERRORS

CHECK_TIMEOUT_S: Final = 2.0
SQL: Final = sql.queries("read")


async def healthz(_: Request) -> Response:
    """The process answers: no I/O."""
    return reply({"status": "ok", "version": release()})


async def readyz(request: Request) -> Response:
    """Postgres answers, its schema is current, and this API is not about to stop. Redis away is degraded."""
    if getattr(request.app.state, "draining", False):
        return problem(request, 503, "not now: it stops", headers={"Retry-After": "1"})
    missing, degraded = await asyncio.gather(_missing(request), _degraded(request))
    if missing is None:
        return problem(request, 503, "Postgres does not answer", headers={"Retry-After": "1"})
    if missing:
        return problem(request, 503, f"migrations have not run: {', '.join(missing)}", headers={"Retry-After": "5"})
    return reply({"status": "ready", "version": release(), "degraded": degraded})


async def _missing(request: Request) -> list[str] | None:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return await pending(door(request).pool)
    except POSTGRES_ERRORS:
        return None


async def _degraded(request: Request) -> list[dict[str, Any]]:
    """What of Redis does not work now."""
    here = door(request)
    await here.owner.probe(here.redis)
    trouble = here.owner.state.trouble
    return [{"part": "redis", "reason": trouble.reason, "since": trouble.since}] if trouble else []


async def list_workers(request: Request) -> Response:
    rows = await fetch(request, SQL["workers"])
    return reply({"items": [{**row, "breakers": raw(row["breakers"])} for row in rows]})
