"""`/healthz`, `/readyz`, `/workers`."""

import asyncio
from typing import Any, Final, Literal
from uuid import UUID

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

import sql
from schemas.envelope import Moment
from service.core.release import release
from service.http.app_state import fetch, raw, reply, state_of
from service.http.problem import problem

CHECK_TIMEOUT_S: Final = 2.0
SQL: Final = sql.queries("health")


class Health(Struct, frozen=True):
    status: Literal["ok"]
    version: str


class Degraded(Struct, frozen=True):
    part: Literal["redis"]
    reason: str
    since: Moment


class Ready(Struct, frozen=True):
    """`degraded`: what of Redis does not work now."""

    status: Literal["ready"]
    version: str
    degraded: list[Degraded]


class WorkerView(Struct, frozen=True):
    """A worker that is known; `alive`: its lease holds. `breakers` is null until it has reported."""

    worker: UUID
    ordinal: int | None
    host: str
    pid: int
    version: str
    started_at: Moment
    beat_at: Moment
    lease_until: Moment
    alive: bool
    state: Literal["ready", "disconnected", "draining", "stopped", "dead"]
    reason: str | None
    slots: int
    in_flight: int
    pipelines: list[str]
    simulated: bool | None
    lag_s: float | None
    breakers: Any


class WorkerList(Struct, frozen=True):
    items: list[WorkerView]


async def healthz(_: Request) -> Response:
    """The process answers: no I/O."""
    return reply(Health("ok", release()))


async def readyz(request: Request) -> Response:
    """An event could be stored, and this API is not about to stop. Redis away is degraded."""
    if getattr(request.app.state, "draining", False):
        return problem(request, 503, "not now: it stops", headers={"Retry-After": "1"})
    why_not, degraded = await asyncio.gather(state_of(request).readiness.why_not(), _degraded(request))
    if why_not:
        return problem(request, 503, why_not, headers={"Retry-After": "1"})
    return reply(Ready("ready", release(), degraded))


async def _degraded(request: Request) -> list[Degraded]:
    """What of Redis does not work now."""
    app = state_of(request)
    await app.owner.probe(app.redis)
    trouble = app.owner.state.trouble
    return [Degraded("redis", trouble.reason, trouble.since)] if trouble else []


async def list_workers(request: Request) -> Response:
    rows = await fetch(request, SQL["workers"])
    return reply(WorkerList([WorkerView(**{**row, "breakers": raw(row["breakers"])}) for row in rows]))
