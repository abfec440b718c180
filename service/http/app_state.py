"""What every endpoint is handed, how it reads what is asked, and how it answers."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Final, TypeVar
from uuid import UUID

import asyncpg
import msgspec
from msgspec import Meta, Struct, json
from redis.asyncio import Redis
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from prompts import Prompts
from schemas.catalog import Catalog
from schemas.envelope import Moment
from schemas.text import BadEvent, check, malformed, misfit
from service.access.audit import Audit
from service.access.keys import Keys
from service.access.quotas import Quotas
from service.core.errors import Unavailable
from service.core.metrics import Meters
from service.core.readiness import Readiness
from service.core.redis_owner import RedisOwner
from service.core.servers import Pool
from service.core.settings import Settings
from service.core.turns import Turns, lent
from service.feed.listeners import Listeners
from service.http.body_allowance import BODY_SMALL, BodyAllowance, Shares, caller_of
from service.http.metrics import MetricsPages
from service.intake.intake import Intake

JSON: Final = "application/json"
BODY_TIMEOUT_S: Final = 30.0
DISCARD_MAX: Final = 8 << 20
LIST_MAX: Final = 1 << 20  # bytes of what has any size in the rows of a page, unless its first is larger

Text = Annotated[str, Meta(pattern=r"^[^\x00]*$")]
Limit = Annotated[int, Meta(ge=1, le=500)]
T = TypeVar("T")


class PageQuery(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The query of a list, newest first; `cursor` is the id of the last one of the page before."""

    since: Moment | None = None
    until: Moment | None = None
    limit: Limit = 50
    cursor: UUID | None = None


class AppState(Struct, frozen=True):
    """Made once in the lifespan; `request.state.app_state`."""

    settings: Settings
    catalog: Catalog
    prompts: Prompts
    intake: Intake
    keys: Keys
    pool: Pool
    turns: Turns
    lists: Turns
    searches: Turns
    redis: Redis
    meters: Meters
    metrics_pages: MetricsPages
    listeners: Listeners
    streams: Shares
    answers: Shares
    body_allowance: BodyAllowance
    readiness: Readiness
    owner: RedisOwner
    quotas: Quotas
    audit: Audit
    decoding: asyncio.Lock


def state_of(request: Request) -> AppState:
    state: AppState = request.state.app_state
    return state


def pool_of(request: Request) -> Pool:
    """The pool, of which this caller has no more than its share."""
    app = state_of(request)
    return lent(app.pool, app.turns, caller_of(request.scope))


def listing(request: Request) -> AbstractAsyncContextManager[None]:
    """The caller's turn at a list: more than its share of those under way wait, and hold no rows meanwhile."""
    return state_of(request).lists.turn(caller_of(request.scope))


async def fetch(request: Request, statement: str, *arguments: Any) -> list[asyncpg.Record]:
    return list(await pool_of(request).fetch(statement, *arguments))


def has_more(rows: Sequence[asyncpg.Record], limit: int) -> bool:
    """Whether a page of up to `limit`, cut at LIST_MAX, has something behind it, as far as it knows."""
    return bool(rows) and (len(rows) < rows[0]["among"] or rows[0]["among"] == limit)


def asked_by_query(request: Request, shape: type[T]) -> T:
    try:
        return msgspec.convert(dict(request.query_params), shape, strict=False)
    except msgspec.ValidationError as error:
        fault = misfit(error)
        raise BadEvent(400, f"the query does not fit: {fault.message}", fault.path) from error


async def asked_by_body(request: Request, shape: type[T]) -> T:
    """An empty body is an empty object. Large ones are decoded one after the other, with a turn of all others between
    them: that takes milliseconds, and many callers may send one at once."""
    body = await read_body(request, state_of(request).settings.body_max)
    if len(body) <= BODY_SMALL:
        return _decoded(body, shape)
    async with state_of(request).decoding:
        await asyncio.sleep(0)
        return _decoded(body, shape)


def _decoded(body: bytes, shape: type[T]) -> T:
    check(body)
    try:
        return json.decode(body or b"{}", type=shape)
    except msgspec.ValidationError as error:
        raise misfit(error) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise malformed(body, str(error)) from error


async def read_body(request: Request, size_max: int) -> bytes:
    """Raises BadEvent 413 over `size_max` bytes, HTTPException 408 where they do not come in time and 429 where there
    is no room for more of this caller's, Unavailable where there is none for anybody's.

    What is too large by less than DISCARD_MAX is read to its end and dropped, as is what there is no room for: an
    answer on a connection that closes with bytes still coming would be lost on the way.
    """
    promised, allowance = request.headers.get("content-length", ""), state_of(request).body_allowance
    if promised.isdecimal() and int(promised) > size_max + DISCARD_MAX:
        raise _too_large(size_max)
    body, size, full = bytearray(), 0, None
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                size += len(chunk)
                if chunk and not full and size <= size_max:
                    full = allowance.take(request, len(chunk))
                    body += chunk
                elif size > size_max + DISCARD_MAX:
                    break
    except TimeoutError as error:
        state_of(request).meters.add("callboard_refused_total", ("unsent", "caller"))
        raise HTTPException(
            408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s", {"Connection": "close"}
        ) from error
    if size > size_max:
        raise _too_large(size_max)
    if full:
        whose = "caller" if full == "this caller" else "all"
        state_of(request).meters.add("callboard_refused_total", ("bodies", whose))
    if full == "this caller":
        raise HTTPException(429, "more of your bodies are in hand than one caller may have", {"Retry-After": "1"})
    if full:
        raise Unavailable("it has more bodies in hand than it keeps")
    return bytes(body)


def _too_large(size_max: int) -> BadEvent:
    return BadEvent(413, f"larger than {size_max} bytes (set by CALLBOARD_BODY_MAX)", reason="too_large")


def event_id_of(request: Request) -> UUID:
    try:
        return UUID(request.path_params["event_id"])
    except ValueError as error:
        raise HTTPException(404, f"no event {request.path_params['event_id']}") from error


def reply(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.encode(body), status, headers, media_type=JSON)


def raw(text: str | None) -> msgspec.Raw | None:
    """A JSON column as it is, without decoding it only to encode it again."""
    return None if text is None else msgspec.Raw(text.encode())
