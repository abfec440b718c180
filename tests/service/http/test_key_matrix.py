"""Every kind of caller at every route by every method; what differs from the table is told in one list.

The table of routes is NEEDS in test_auth.py, written by hand; the routes that are asked are the application's own.
"""

from datetime import timedelta
from typing import Final, get_args

import httpx
import pytest
from msgspec import Struct
from starlette.routing import Match, Route

from service.access.keys import HELD_S, KEY, SESSION, Scope, mint
from service.core.settings import Settings
from service.http.app import create_app
from tests.board import Board, serving
from tests.eventually import eventually
from tests.keys import bearer, make_key, revoke
from tests.service.http.test_auth import ASKED, MARK, NEEDS, PAGES, STREAM, acmes, filled

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
SAFE: Final = ("GET", "HEAD", "OPTIONS")
NO_ID: Final = "0197b2c4-5d3e-7c1a-9f60-3a52d7c81e44"
FORMS: Final = ("POST /login", "POST /logout")
FROM_ELSEWHERE: Final = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}

Outcome = str
"""`in`, `401`, `403`, `login` (a page sends strangers there), `405`, or what an answer was that is none of these."""


class Someone(Struct, frozen=True):
    """A caller; `scopes`: of the valid key behind it, None where there is none."""

    name: str
    headers: dict[str, str]
    scopes: frozenset[str] | None = None

    @property
    def is_refused_elsewhere(self) -> bool:
        """A browser sends its cookie from another site's page too; a bearer's key only who has it."""
        return "Sec-Fetch-Site" in self.headers and "Authorization" not in self.headers


def cookie(secret: str) -> dict[str, str]:
    return {"Cookie": f"callboard={secret}"}


async def signed_in(http: httpx.AsyncClient, key: str) -> str:
    """The secret of a new session."""
    answer = await http.post("/login", data={"key": key})
    http.cookies.clear()
    return answer.cookies["callboard"]


async def strangers(settings: Settings, http: httpx.AsyncClient) -> list[Someone]:
    """All who have nothing that is valid where they send it."""
    expired = await make_key(settings, "admin", lasts=timedelta(seconds=-1))
    revoked, reader = await make_key(settings, "admin"), await make_key(settings, "admin")
    session, orphan = await signed_in(http, reader), await signed_in(http, revoked)
    signed_out = await signed_in(http, reader)
    await http.post("/logout", headers=cookie(signed_out))
    await revoke(settings, revoked)

    async def is_out() -> bool:
        answers = [await http.get("/types", headers=each) for each in (bearer(revoked), cookie(orphan))]
        return [answer.status_code for answer in answers] == [401, 401]

    await eventually(is_out, HELD_S + 1)
    sent = {
        "nobody": {},
        "an unknown key": bearer(mint(KEY)),
        "an expired key": bearer(expired),
        "a revoked key": bearer(revoked),
        "a key that is cut off": bearer(reader[:-1]),
        "a key behind another scheme": {"Authorization": f"Basic {reader}"},
        "a key in another header": {"X-Api-Key": reader},
        "a key as cookie": cookie(reader),
        "a session as bearer": bearer(session),
        "an unknown session": cookie(mint(SESSION)),
        "a session of a revoked key": cookie(orphan),
        "a session that was signed out": cookie(signed_out),
        "a session beside an unknown key": {**cookie(session), **bearer(mint(KEY))},
    }
    return [Someone(name, headers) for name, headers in sent.items()]


async def holders(settings: Settings, http: httpx.AsyncClient) -> list[Someone]:
    """Each scope alone, and what may be done by way of a session."""
    found = [Someone(f"a key to {name}", bearer(await make_key(settings, name)), frozenset({name})) for name in SCOPES]
    for scope in ("read", "admin"):
        session = cookie(await signed_in(http, await make_key(settings, scope)))
        found.append(Someone(f"a session to {scope}", session, frozenset({scope})))
        elsewhere = cookie(await signed_in(http, await make_key(settings, scope))) | FROM_ELSEWHERE
        found.append(Someone(f"a session to {scope}, by another site", elsewhere, frozenset({scope})))
    key = bearer(await make_key(settings, "admin"))
    found.append(Someone("a key to admin, by another site", key | FROM_ELSEWHERE, frozenset({"admin"})))
    theirs = bearer(await make_key(settings, "admin", tenant="other"))
    return [*found, Someone("another tenant's key to admin", theirs, frozenset({"admin"}))]


SCOPES: Final = get_args(Scope)


def right(someone: Someone, route: str, need: str | None) -> Outcome:
    """What the table says; a route that it does not know differs from everything."""
    method = route.partition(" ")[0]
    if need is None:
        return "an expectation in NEEDS"
    if method not in SAFE and (someone.is_refused_elsewhere or (route in FORMS and "Origin" in someone.headers)):
        return "403"
    if need == "open":
        return "in"
    if someone.scopes is None:
        return "login" if route in PAGES else "401"
    return "in" if someone.scopes & {need, "admin"} else "403"


def outcome(answer: httpx.Response, route: str | None) -> Outcome:
    status = answer.status_code
    if status == 303 and answer.headers["location"].startswith("/login?next="):
        return "login"
    if status == 401 and route == "POST /login":  # the form again: no key was in it
        return "in"
    if status in (401, 403, 405):
        has_challenge = answer.headers.get("www-authenticate", "").startswith('Bearer realm="callboard"')
        return (
            f"{status}"
            if has_challenge is (status == 401) or status == 403
            else f"{status} with or without its challenge"
        )
    return "in" if status < 500 else f"{status}"


def answering(routes: list[Route], method: str, path: str) -> str | None:
    """The route that takes it, if one does: `GET /events/batch` asks for an event of that name."""
    scope = {"type": "http", "method": method, "path": path, "headers": []}
    for route in routes:
        if route.matches(scope)[0] is Match.FULL:
            return f"{'GET' if method == 'HEAD' else method} {route.path.rstrip('/') or '/'}"
    return None


def routes_of(settings: Settings) -> list[Route]:
    routes = create_app(settings).routes
    assert all(type(route) is Route for route in routes), "some are asked in another way than this test knows"
    return [route for route in routes if isinstance(route, Route)]


@pytest.mark.usefixtures("briefly")
async def test_each_kind_of_caller_at_each_route(settings: Settings) -> None:
    differs, cells = list[str](), 0
    routes = routes_of(settings)
    where = {each.path: filled(each.path, NO_ID, NO_ID) for each in routes}
    takes = {(method, path): answering(routes, method, where[path]) for path in where for method in METHODS}
    last = sorted(takes, key=lambda each: each[1] == "/logout")  # a session ends there
    async with serving(settings) as url, httpx.AsyncClient(base_url=url, timeout=10) as http:
        everybody = [*await holders(settings, http), *await strangers(settings, http)]
        for someone in everybody:
            for method, path in last:
                route = takes[method, path]
                if route is None and someone.name not in ASKING_ALL:
                    continue
                wanted = right(someone, route, NEEDS.get(route)) if route else "405"
                answer = await http.request(method, where[path], headers=someone.headers)
                got, cells = outcome(answer, route), cells + 1
                if got != wanted or (method == "HEAD" and answer.content):
                    differs.append(f"{someone.name}: {method} {path}: {got}, not {wanted}")
    assert not differs, "\n".join(differs)
    assert cells > 1_000


ASKING_ALL: Final = ("nobody", "a key to admin", "a session to read, by another site")


# Where a tenant's rows stand; those of keys change by being used, and letters when a worker relays them.
TABLES: Final = "select table_name from information_schema.columns where column_name = 'tenant'"
ROWS: Final = "select to_jsonb(t) - '{{relay_no,relayed}}'::text[] from {} t where tenant = $1 order by t::text"
WITHOUT: Final = ("keys", "sessions")


async def rows_of(board: Board, tenant: str) -> dict[str, list[str]]:
    tables = sorted({row[0] for row in await board.sql(TABLES)} - set(WITHOUT))
    assert {"events", "dead_letters", "states", "documents"} <= set(tables)
    return {table: [row[0] for row in await board.sql(ROWS.format(table), tenant)] for table in tables}


async def test_another_tenant_reaches_nothing_by_any_route(board: Board) -> None:
    """By a key and by a session of its own, at every route with this tenant's ids: no word of it, and no change."""
    acme = bearer(await make_key(board.settings, "admin", tenant="acme"))
    key = await make_key(board.settings, "admin", tenant="other")
    event_id, dead_id = await acmes(board, acme)
    before, differs = await rows_of(board, "acme"), list[str]()
    for headers in (bearer(key), cookie(await signed_in(board.http, key))):
        for path, methods in [(each.path, each.methods or ()) for each in routes_of(board.settings)]:
            for method in sorted(methods):
                route = f"{method} {path}"
                where = filled(path, event_id, dead_id)
                body = BODIES.get(route, ASKED.get(route, {}))
                answer = await board.http.request(method, where, headers=headers, json=body)
                named = "_id" in path and not path.startswith("/ui")
                if MARK in answer.text or (named and answer.status_code not in (404, 422)) or answer.status_code >= 500:
                    differs.append(f"{route}: {answer.status_code} {answer.text[:200]}")
    assert not differs, "\n".join(differs)
    assert await rows_of(board, "acme") == before
    assert (await board.http.get(filled(STREAM.partition(" ")[2], event_id, dead_id), headers=acme)).status_code == 200


EVERYTHING: Final = {"since": "2000-01-01T00:00:00Z"}
BODIES: Final = {
    "POST /dead-letters/replay": EVERYTHING,
    "DELETE /dead-letters": EVERYTHING,
    "DELETE /collections/{name}/documents": {"filter": {"source": {"ne": ""}}},
    "POST /events/{event_id}/replay": {"again": True},
}
