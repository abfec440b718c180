"""`/operations`: who did what. Refusals and sign-ins are also lines of the log: see service/access/audit.py."""

from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import sql
from schemas.envelope import Moment
from service.access.audit import Action, named
from service.http.app_state import PageQuery, Text, asked_by_query, fetch, listing, raw, reply, state_of
from service.http.auth import caller, session
from service.http.metrics import route_of

REFUSALS: Final = (401, 403, 429)
SQL: Final = sql.queries("audit")


class Operations(PageQuery, frozen=True, forbid_unknown_fields=True):
    """The query of `GET /operations`."""

    actor: Text | None = None
    action: Action | None = None


class OperationItem(Struct, frozen=True):
    """Who did what."""

    op_id: UUID
    at: Moment
    actor: str
    action: Action
    event_id: UUID | None
    detail: dict[str, Any] | None


class OperationList(Struct, frozen=True):
    """`next` is the `cursor` of the page behind this one."""

    items: list[OperationItem]
    next: UUID | None


async def list_operations(request: Request) -> Response:
    """Who did what in this tenant, newest first."""
    query = asked_by_query(request, Operations)
    filters = (query.since, query.until, query.actor, query.action, query.cursor, query.limit)
    async with listing(request):
        rows = await fetch(request, SQL["list_operations"], caller(request).tenant, *filters)
        is_full = len(rows) == query.limit
        items = [OperationItem(**{**row, "detail": raw(row["detail"])}) for row in rows]
        return reply(OperationList(items, items[-1].op_id if is_full else None))


def audited(app: ASGIApp) -> ASGIApp:
    """Notes each refusal, whichever part of the application answers with it."""

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = scope["state"].get("refused", message["status"])
                if status in REFUSALS:
                    request = Request(scope)
                    note(request, "refused", named(presented(request)), status)
            await send(message)

        await app(scope, receive, sent if scope["type"] == "http" else send)

    return answered


def note(request: Request, action: str, key: str, status: int) -> None:
    """`key`: the prefix of the caller's key, or another name of the caller."""
    address = request.client.host if request.client else "unknown"
    path, method = route_of(request.scope)
    state_of(request).audit.note(action, key, address, f"{method} {path}", status)


def presented(request: Request) -> str:
    """The text that came as a key: in the form of the sign-in, in the header, or as a session."""
    form: str = getattr(request.state, "presented", "")
    return form or request.headers.get("authorization", "").partition(" ")[2].strip() or session(request)
