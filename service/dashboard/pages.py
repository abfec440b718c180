"""The pages: `/` lists the latest events, `/ui/events/{event_id}` shows one with its steps."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from itertools import takewhile
from shlex import quote
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

from msgspec import Struct, ValidationError, convert, json
from msgspec.structs import replace
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import sql
from schemas.outcome import ENDED
from service.access.keys import AT_HOME
from service.access.local_token import FILE
from service.core.errors import TooMany, Unavailable
from service.core.servers import POSTGRES_ERRORS, postgres_passes
from service.dashboard.look import STATIC, Look, look
from service.dashboard.sign_in import TOKEN, login_page, logout, take_token, to_login
from service.dashboard.waterfall import calls, waterfall
from service.http.app_state import AppState, fetch, listing, state_of
from service.http.audit import presented
from service.http.auth import Caller, admit, caller
from service.http.events import Filter, find, load

OPEN: Final = ("queued", "scheduled", "running", "waiting")
OPEN_MAX: Final = 100_000
LATEST: Final = 1_000
LIVE_MS: Final = 2_000
ROWS_MAX: Final = 100
CHILDREN_MAX: Final = 20
SQL: Final = {**sql.queries("dashboard"), "workers": sql.queries("health")["workers"]}
SHOWN_APART: Final = frozenset(("specversion", "datacontenttype", "type", "id", "source", "partitionkey", "data"))

Show = Callable[[Look, Request], Awaitable[Response]]


class Counts(Struct, frozen=True):
    open: Mapping[str, int]
    ended: Mapping[str, int]

    @property
    def too_many(self) -> bool:
        return sum(self.open.values()) >= OPEN_MAX


def routes() -> list[Route]:
    """What the API serves beside its resources."""
    mine = look()
    return [
        Route("/", _shown(mine, list_page), name="events_page"),
        Route("/ui/events/{event_id}", _shown(mine, event_page), name="event_page"),
        Route("/login", _shown(mine, sign_in_page, is_open=True), methods=["GET", "POST"], name="sign_in_page"),
        Route("/logout", logout, methods=["POST"], name="sign_out"),
        Route(f"{STATIC}/{{name}}", mine.asset, name="asset"),
    ]


def _shown(mine: Look, show: Show, *, is_open: bool = False) -> Callable[[Request], Awaitable[Response]]:
    """For those who may read, unless it is open to all; a refusal and an outage are pages too."""

    async def endpoint(request: Request) -> Response:
        try:
            if TOKEN in request.query_params:
                return await take_token(request)
            if not is_open:
                await admit(request, "read")
            return await show(mine, request)
        except HTTPException as error:
            if error.status_code == 401:
                if presented(request):  # a visitor who has nothing yet is not refused
                    request.state.refused = 401
                return to_login(request)
            return _trouble(mine, request, error.status_code, "Not for you", error.detail, error.headers)
        except TooMany as error:
            again = {"Retry-After": str(error.retry_after_s)}
            return _trouble(mine, request, 429, "Too much at once", f"{error}. Reload in a moment.", again)
        except (Unavailable, *POSTGRES_ERRORS) as error:
            if not isinstance(error, Unavailable) and not postgres_passes(error):
                raise
            again = {"Retry-After": str(getattr(error, "retry_after_s", 1))}
            return _trouble(mine, request, 503, "Postgres does not answer", "Reload in a moment.", again)

    return endpoint


async def list_page(mine: Look, request: Request) -> Response:
    query = _filter_of(request)
    if query is None:
        return _trouble(mine, request, 400, "This list can't be shown", "A filter in the address does not fit.")
    app = state_of(request)
    query = replace(query, limit=min(query.limit, ROWS_MAX))
    async with listing(request):
        items, more = await find(request, query)
    newest = query.cursor is None
    return mine.page(
        "events.html",
        **_common(request, live=newest, simulated=await _simulated(request)),
        items=[{"partitionkey": None, **item, "error": _failure(item["error"])} for item in items],
        query=query,
        is_filtered=replace(query, limit=50, cursor=None) != Filter(),
        older=_address(request, str(items[-1]["event_id"])) if more else None,
        newest=None if newest else _address(request, ""),
        types=sorted({*app.catalog, *([query.type] if query.type else [])}),
        counts=await _counts(request),
        workers=await fetch(request, SQL["workers"]),
        latest=LATEST,
        example=_example(app),
        shown_key=_shown_key(request),
        url=str(request.base_url).rstrip("/"),
    )


async def sign_in_page(mine: Look, request: Request) -> Response:
    return await login_page(mine, request, _common(request, live=False))


async def event_page(mine: Look, request: Request) -> Response:
    event_id = _uuid(request.path_params["event_id"])
    event = await load(request, event_id) if event_id else None
    if event is None:
        shown_id = request.path_params["event_id"]
        return _trouble(mine, request, 404, "No such event", f"There is no event {shown_id}, or it has been forgotten.")
    common = _common(request, live=event["status"] in OPEN, simulated=await _simulated(request))
    children, more = await find(request, Filter(parent=event_id, limit=CHILDREN_MAX + 1))
    return mine.page(
        "event.html",
        **common,
        event={"partitionkey": None, "parent": None, **event},
        failure=_failure(event["error"]),
        others=_others(event),
        ledger=calls(event),
        drawn=waterfall(event, common["now"]),
        children=children[:CHILDREN_MAX],
        has_more_children=more,
    )


async def _simulated(request: Request) -> bool:
    ((simulated,),) = await fetch(request, SQL["simulated"])
    return bool(simulated)


def _common(request: Request, *, live: bool, simulated: bool = False) -> dict[str, Any]:
    """What `base.html` needs."""
    who: Caller | None = getattr(request.state, "caller", None)
    return {
        "now": datetime.now(UTC),
        "live_ms": LIVE_MS if live else None,
        "simulated": simulated,
        "key": who and who.key,
        "open": OPEN,
        "ended": ENDED,
    }


def _trouble(
    mine: Look, request: Request, status: int, title: str, what: str, headers: Mapping[str, str] | None = None
) -> Response:
    page = mine.page("trouble.html", status, **_common(request, live=False), title=title, what=what)
    page.headers.update(headers or {})
    return page


def _filter_of(request: Request) -> Filter | None:
    query = {name: value for name, value in request.query_params.items() if value}
    try:
        return convert(query, Filter, strict=False)
    except ValidationError:
        return None


def _address(request: Request, cursor: str) -> str:
    query = {name: value for name, value in request.query_params.items() if value and name != "cursor"}
    return "/?" + urlencode({**query, "cursor": cursor} if cursor else query)


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


async def _counts(request: Request) -> Counts:
    rows = await fetch(request, SQL["counts"], caller(request).tenant, OPEN_MAX, LATEST)
    opened, ended = ({row["status"]: row["n"] for row in rows if row["open"] is wanted} for wanted in (True, False))
    return Counts(opened, ended)


def _others(event: Mapping[str, Any]) -> dict[str, Any]:
    """The CloudEvents attributes and extensions that have no place of their own: all that stand before `event_id`."""
    return {name: event[name] for name in takewhile(lambda name: name != "event_id", event) if name not in SHOWN_APART}


def _failure(error: Any) -> dict[str, Any] | None:
    """`{kind, message, step, at, where}`, all of them there."""
    if error is None:
        return None
    error_shown = json.decode(error)
    known = error_shown if isinstance(error_shown, dict) else {"message": str(error_shown)}
    return {"kind": "error", "message": "", "step": None, "where": None, **known}


def _shown_key(request: Request) -> str:
    """The shell's word for the caller's key."""
    token = state_of(request).settings.data_path / FILE
    return f"$(cat {quote(str(token))})" if caller(request).key == AT_HOME else "$CALLBOARD_API_KEY"


def _example(app: AppState) -> str | None:
    """Something to send, where the worked example is still there."""
    if "ticket.opened" not in app.catalog:
        return None
    data = {"ticket_id": "T-1", "subject": "Charged twice", "body": "You charged my card twice this month."}
    return json.encode(data).decode()
