"""Cancel, replay, the dead letters, the mailbox of an actor, and forget."""

from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec
from msgspec import Meta, Struct, json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

import sql
from schemas.envelope import Moment
from schemas.outcome import Reason, Status
from schemas.text import BadEvent
from service.core.servers import ACQUIRE_TIMEOUT_S
from service.core.streams import names_of
from service.http.app_state import (
    LIST_MAX,
    Limit,
    asked_by_body,
    asked_by_query,
    event_id_of,
    fetch,
    has_more,
    listing,
    pool_of,
    raw,
    reply,
    state_of,
)
from service.http.auth import caller
from service.operations.forget import Forgetter, InHand
from service.operations.forget_redis import RedisTraces, Target
from service.operations.operate import Letters, Operator, StateMoved, UnknownStep

SQL: Final = sql.queries("operations")
CURSOR_MAX: Final = (1 << 63) - 1


class Page(Letters, frozen=True, forbid_unknown_fields=True):
    limit: Limit = 50
    cursor: Annotated[int, Meta(ge=1, le=CURSOR_MAX)] | None = None


class Which(Letters, frozen=True, forbid_unknown_fields=True):
    dry_run: bool = False


class Replay(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a replay: the step to begin from, or everything that is remembered is carried over.

    `again`: an actor's states may be added to a second time, where they can't be set back to what they were.
    """

    from_: str | None = msgspec.field(default=None, name="from")
    again: bool = False


class ReplayAnswer(Struct, frozen=True):
    event_id: UUID
    run: int
    status: Literal["queued"]


class CancelAnswer(Struct, frozen=True):
    event_id: UUID
    status: Literal["cancelled"]


class DeadLetter(Struct, frozen=True):
    """`event` is what was said, as JSON where it is some; `event_id` is null where it was never accepted."""

    dead_id: UUID
    event_id: UUID | None
    type: str | None
    reason: Reason
    attempts: int
    at: Moment
    error: dict[str, Any]
    event: Any


class DeadLetterList(Struct, frozen=True):
    """`next` is the `cursor` of the page behind this one."""

    items: list[DeadLetter]
    next: str | None


class MailboxHead(Struct, frozen=True):
    """The head of a mailbox: what runs, or what everything behind it waits for."""

    event_id: UUID
    type: str
    status: Status
    attempts: int
    due_at: Moment | None
    claimed_at: Moment | None
    worker: UUID | None
    cause: str | None


class Actor(Struct, frozen=True):
    """What is remembered for a key, by the type of the state; `mailbox`: how many events are open."""

    key: str
    states: dict[str, Any]
    mailbox: int
    in_hand: MailboxHead | None


async def replay_event(request: Request) -> Response:
    event_id = event_id_of(request)
    replay = await asked_by_body(request, Replay)
    try:
        run = await _operator(request).replay(event_id, replay.from_, again=replay.again)
    except UnknownStep as error:
        raise BadEvent(422, str(error), "$.from") from error
    except StateMoved as error:
        raise HTTPException(409, f'{error}. Where that is what you want, send "again": true.') from error
    if run is None:
        raise await _why_not(
            request, event_id, "is not ended yet: only what is succeeded, dead or cancelled is replayed"
        )
    return reply(ReplayAnswer(event_id, run, "queued"), 202)


async def cancel_event(request: Request) -> Response:
    event_id = event_id_of(request)
    if not await _operator(request).cancel(event_id):
        raise await _why_not(request, event_id, "has ended: there is nothing to cancel")
    return reply(CancelAnswer(event_id, "cancelled"), 202)


async def list_dead_letters(request: Request) -> Response:
    page = asked_by_query(request, Page)
    async with listing(request):
        rows = await _operator(request).letters(page, page.limit, LIST_MAX, page.cursor)
        more = has_more(rows, page.limit)
        return reply(DeadLetterList([_letter(row) for row in rows], str(rows[-1]["dead_no"]) if more else None))


async def get_dead_letter(request: Request) -> Response:
    dead_id: UUID = request.path_params["dead_id"]
    rows = await _operator(request).letters(Letters(ids=[dead_id]), 1, LIST_MAX)
    if not rows:
        raise HTTPException(404, f"no dead letter {dead_id}")
    return reply(_letter(rows[0]))


async def replay_dead_letters(request: Request) -> Response:
    which = await _which(request)
    return reply(await _operator(request).replay_letters(which, dry_run=which.dry_run))


async def discard_dead_letters(request: Request) -> Response:
    which = await _which(request)
    return reply(await _operator(request).discard_letters(which, dry_run=which.dry_run))


async def get_actor(request: Request) -> Response:
    """What a key's actor remembers; its mailbox: how long, and what is in hand or holds it up."""
    tenant, key = caller(request).tenant, request.path_params["key"]
    async with pool_of(request).acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
        length = await connection.fetchval(SQL["mailbox"], tenant, key)
        row = await connection.fetchrow(SQL["in_hand"], tenant, key)
        states = {row["type"]: raw(row["value"]) for row in await connection.fetch(SQL["states_of"], tenant, key)}
    return reply(Actor(key, states, length, MailboxHead(**row) if row else None))


async def forget(request: Request) -> Response:
    """Removes every trace of a key, a subject or a source, and counts again what is left."""
    target, app, who = await asked_by_body(request, Target), state_of(request), caller(request)
    if len(target.by) != 1:
        raise BadEvent(400, "name one of key, subject, source")
    redis = RedisTraces(app.redis, names_of(app.settings), who.tenant, app.settings.body_max)
    try:
        return reply(await Forgetter(app.pool, redis, app.intake.notifier.notify, who.tenant, who.actor).forget(target))
    except InHand as error:
        raise HTTPException(409, str(error)) from error


def _operator(request: Request) -> Operator:
    app, who, pool = state_of(request), caller(request), pool_of(request)
    return Operator(pool, app.redis, names_of(app.settings).cancel, app.intake, who.tenant, who.actor)


async def _why_not(request: Request, event_id: UUID, reason: str) -> HTTPException:
    there = await fetch(request, SQL["mailbox_of"], event_id, caller(request).tenant)
    return HTTPException(409, f"event {event_id} {reason}") if there else HTTPException(404, f"no event {event_id}")


async def _which(request: Request) -> Which:
    """By the query or by the body: of two that are merged one could be overlooked."""
    which = await asked_by_body(request, Which)
    if request.query_params:
        if which != Which():
            raise BadEvent(400, "the filter is in the query and in the body: send one of them")
        which = asked_by_query(request, Which)
    if which.everything:
        raise BadEvent(
            400, "name at least one of type, reason, since, until, ids: everything at once is asked for by none"
        )
    return which


def _letter(row: Any) -> DeadLetter:
    facts: dict[str, Any] = {name: row[name] for name in ("dead_id", "event_id", "type", "reason", "attempts", "at")}
    return DeadLetter(**facts | {"error": raw(row["error"]), "event": _as_said(row["event"])})


def _as_said(text: str) -> Any:
    """The event as JSON where it is some, else the text."""
    try:
        json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text
    return msgspec.Raw(text.encode())
