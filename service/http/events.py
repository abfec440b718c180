"""`/events`: accept, show, list."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

import sql
from schemas.envelope import SOURCE
from schemas.identity import first_id
from schemas.outcome import Status
from service.core.servers import ACQUIRE_TIMEOUT_S
from service.http.app_state import (
    JSON,
    LIST_MAX,
    PageQuery,
    Text,
    asked_by_query,
    event_id_of,
    fetch,
    has_more,
    listing,
    pool_of,
    read_body,
    reply,
    state_of,
)
from service.http.auth import caller
from service.http.view import event_view, list_item

MOMENTS_MAX: Final = 2_000  # attempts, calls, operations: the timeline of an event has the latest so many of each
MEDIA_TYPES: Final = (JSON, "application/cloudevents+json")
SQL: Final = sql.queries("events")


class Filter(PageQuery, frozen=True, forbid_unknown_fields=True):
    """The query of `GET /events`."""

    type: Text | None = None
    status: Status | None = None
    key: Text | None = None
    source: Text | None = None
    id: Text | None = None
    parent: UUID | None = None


async def post_event(request: Request) -> Response:
    """202 once the event is committed. Raises OverLimit where the key has used up its quota."""
    media_type_of(request, MEDIA_TYPES)
    body = await read_body(request, state_of(request).settings.body_max)
    sender, key = caller(request), _idempotency_key(request)
    _, over = await state_of(request).quotas.admit(sender.key, 1)
    if over is not None:
        raise over
    accepted = await state_of(request).intake.take(
        body, tenant=sender.tenant, source=SOURCE, key=key, by=sender.actor, quota_key=sender.quota_key
    )
    return reply(accepted, 202, {"Location": f"/events/{accepted.event_id}"})


async def get_event(request: Request) -> Response:
    event_id = event_id_of(request)
    event = await load(request, event_id)
    if event is None:
        raise HTTPException(404, f"no event {event_id}")
    return reply(event)


async def load(request: Request, event_id: UUID) -> dict[str, Any] | None:
    """One event with everything that happened to it, or None."""
    async with pool_of(request).acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
        row = await connection.fetchrow(SQL["event"], event_id, caller(request).tenant)
        if row is None:
            return None
        attempts = await connection.fetch(SQL["attempts"], event_id, LIST_MAX, MOMENTS_MAX)
        calls = await connection.fetch(SQL["calls"], event_id, MOMENTS_MAX)
        operations = await connection.fetch(SQL["operations"], event_id, MOMENTS_MAX)
    return event_view(row, attempts, calls, operations)


async def list_events(request: Request) -> Response:
    query = asked_by_query(request, Filter)
    async with listing(request):
        items, more = await find(request, query)
        return reply({"items": items, "next": items[-1]["event_id"] if more else None})


async def find(request: Request, query: Filter) -> tuple[list[dict[str, Any]], bool]:
    """The events that fit, newest first, without `data`, `result` and `timeline`; and whether there may be more."""
    bounds = [at and first_id(at) for at in (query.since, query.until)]
    below = min((bound for bound in (bounds[1], query.cursor) if bound is not None), default=None)
    kinds = (query.type, query.status, query.key, query.source, query.id)
    bounded = (bounds[0], below, query.limit)
    rows = await fetch(request, SQL["events"], caller(request).tenant, *kinds, *bounded, query.parent, LIST_MAX)
    return [list_item(row) for row in rows], has_more(rows, query.limit)


def media_type_of(request: Request, taken: Sequence[str]) -> str:
    """Raises HTTPException 415 unless it is one of those."""
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type not in taken:
        raise HTTPException(415, f'send one of {", ".join(taken)}, not "{media_type}"')
    if media_type == JSON and "ce-specversion" in request.headers:
        raise HTTPException(415, "CloudEvents' binary mode is not taken here: send application/cloudevents+json")
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() != "identity":
        raise HTTPException(415, f'send the body as it is, without Content-Encoding, not "{coding}"')
    return media_type


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= 200 and key.isascii()):  # else encoded who knows how
        raise HTTPException(400, "the header Idempotency-Key has 1 to 200 characters of ASCII")
    return key
