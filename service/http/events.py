"""`/events`: accept, show, list."""

import asyncio
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from msgspec import Meta, Struct, convert
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

import sql
from schemas.identity import first_id
from schemas.text import BadEvent
from service.http.auth import caller
from service.http.door import door, reply
from service.http.view import event_view, list_item
from service.resources import Pool

BODY_TIMEOUT_S: Final = 30.0
DISCARD_MAX: Final = 8 << 20
ACQUIRE_TIMEOUT_S: Final = 5.0
SOURCE: Final = "/http"
MEDIA_TYPES: Final = ("application/json", "application/cloudevents+json")
SQL: Final = {**sql.queries("read"), **sql.queries("operate")}

Moment = Annotated[datetime, Meta(tz=True)]
Text = Annotated[str, Meta(pattern=r"^[^\x00]*\Z")]


class Filter(Struct, frozen=True, forbid_unknown_fields=True):
    """The query of `GET /events`."""

    type: Text | None = None
    status: Text | None = None
    key: Text | None = None
    source: Text | None = None
    id: Text | None = None
    since: Moment | None = None
    until: Moment | None = None
    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    cursor: UUID | None = None


async def post_event(request: Request) -> Response:
    """202 once the event is committed."""
    _media_type(request)
    body = await read_body(request, door(request).settings.body_max)
    tenant, key = caller(request).tenant, _idempotency_key(request)
    accepted = await door(request).intake.take(body, tenant=tenant, source=SOURCE, key=key)
    return reply(accepted, 202, {"Location": f"/events/{accepted.event_id}"})


async def get_event(request: Request) -> Response:
    event_id = event_id_of(request)
    found = await load(door(request).pool, caller(request).tenant, event_id)
    if found is None:
        raise HTTPException(404, f"no event {event_id}")
    return reply(found)


async def load(pool: Pool, tenant: str, event_id: UUID) -> dict[str, Any] | None:
    """One event with everything that happened to it, or None."""
    async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
        row = await connection.fetchrow(SQL["event"], event_id, tenant)
        if row is None:
            return None
        attempts = await connection.fetch(SQL["attempts"], event_id)
        calls = await connection.fetch(SQL["calls"], event_id)
        operations = await connection.fetch(SQL["operations"], event_id)
    return event_view(row, attempts, calls, operations)


async def list_events(request: Request) -> Response:
    try:
        asked = convert(dict(request.query_params), Filter, strict=False)
    except msgspec.ValidationError as error:
        raise HTTPException(400, f"the query does not fit: {error}") from error
    items = await find(door(request).pool, caller(request).tenant, asked)
    whole = len(items) == asked.limit
    return reply({"items": items, "next": items[-1]["event_id"] if whole else None})


async def find(pool: Pool, tenant: str, asked: Filter) -> list[dict[str, Any]]:
    """The events that fit, newest first, without `data`, `result` and `timeline`."""
    bounds = [at and first_id(at) for at in (asked.since, asked.until)]
    below = min((each for each in (bounds[1], asked.cursor) if each is not None), default=None)
    kinds = (asked.type, asked.status, asked.key, asked.source, asked.id)
    async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
        rows = await connection.fetch(SQL["events"], tenant, *kinds, bounds[0], below, asked.limit)
    return [list_item(row) for row in rows]


async def read_body(request: Request, size_max: int) -> bytes:
    """Raises BadEvent 413 over `size_max` bytes and 408 where they do not come in time.

    What is too large by less than DISCARD_MAX is read to its end and dropped: an answer on a connection that closes
    with bytes still coming would be lost on the way.
    """
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) > size_max + DISCARD_MAX:
        raise _too_large(size_max)
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= size_max:
                    body += chunk
                elif size > size_max + DISCARD_MAX:
                    break
    except TimeoutError as error:
        raise HTTPException(
            408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s", {"Connection": "close"}
        ) from error
    if size > size_max:
        raise _too_large(size_max)
    return bytes(body)


def _too_large(size_max: int) -> BadEvent:
    return BadEvent(413, f"larger than {size_max} bytes (CALLBOARD_BODY_MAX)", reason="too_large")


def _media_type(request: Request) -> None:
    given = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if given not in MEDIA_TYPES:
        raise HTTPException(415, f'send one of {", ".join(MEDIA_TYPES)}, not "{given}"')
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() != "identity":
        raise HTTPException(415, f'send the body as it is, without Content-Encoding, not "{coding}"')


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= 200:
        raise HTTPException(400, "the header Idempotency-Key has 1 to 200 characters")
    return key


def event_id_of(request: Request) -> UUID:
    try:
        return UUID(request.path_params["event_id"])
    except ValueError as error:
        raise HTTPException(404, f"no event {request.path_params['event_id']}") from error
