"""`/login` and `/logout`: a key, or the local token, becomes a session, so that a browser holds neither."""

from datetime import timedelta
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from service.access.keys import AT_HOME, KEYS, Key, sign_in, sign_out
from service.dashboard.look import Look
from service.http.app_state import pool_of, read_body, state_of
from service.http.audit import note
from service.http.auth import SECURE, cookie_of, of_kind, refuse_cross_site, session

LASTS: Final = timedelta(days=7)
TOKEN: Final = "token"  # noqa: S105 - the name of it in an address
FORM_MAX: Final = 4_096
NO_KEY: Final = "That is no key that is valid here: it may be mistyped, expired or revoked."
NOT_TO_READ: Final = "That key may not read: sign in with one that has the scope `read`."


def to_login(request: Request) -> Response:
    """Where a page was asked for and nobody is signed in."""
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"/login?next={quote(request.url.path + query, safe='')}", 303)


async def login_page(mine: Look, request: Request, common: dict[str, Any]) -> Response:
    """The form; of a key sent by it a new session, or why not."""
    if request.method != "POST":
        return mine.page("login.html", **common, next=own_path(request.query_params.get("next", "")), wrong=None)
    refuse_cross_site(request)
    form = parse_qs((await read_body(request, FORM_MAX)).decode("utf-8", "replace"))
    text, ahead = (form.get(name, [""])[0].strip() for name in ("key", "next"))
    request.state.presented = text
    key = await state_of(request).keys.find(of_kind(text, *KEYS))
    if key is None or not key.may("read"):
        wrong, status = (NO_KEY, 401) if key is None else (NOT_TO_READ, 403)
        return mine.page("login.html", status, **common, next=own_path(ahead), wrong=wrong)
    return await _signed_in(request, key, own_path(ahead))


async def take_token(request: Request) -> Response:
    """The address that `callboard up` prints: its token becomes a session, and the address goes on without it."""
    query = [parameter for parameter in request.query_params.multi_items() if parameter[0] != TOKEN]
    ahead = own_path(request.url.path + (f"?{urlencode(query)}" if query else ""))
    request.state.presented = request.query_params[TOKEN]
    key = await state_of(request).keys.find(of_kind(request.query_params[TOKEN], *KEYS))
    if key != AT_HOME:
        request.state.refused = 401
        return RedirectResponse(f"/login?next={quote(ahead, safe='')}", 303)
    return await _signed_in(request, key, ahead)


async def _signed_in(request: Request, key: Key, ahead: str) -> Response:
    secret = await sign_in(pool_of(request), key, LASTS, state_of(request).keys.token)
    note(request, "sign_in", key.prefix, 303)
    return _with_cookie(request, ahead, secret, LASTS)


async def logout(request: Request) -> Response:
    refuse_cross_site(request)
    token = session(request)
    if prefix := await sign_out(pool_of(request), token):
        note(request, "sign_out", prefix, 303)
    state_of(request).keys.forget(token)
    return _with_cookie(request, "/login", "", timedelta())


def own_path(text: str) -> str:
    """A path of this site; anything else is the first page."""
    return text if text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable() else "/"


def _with_cookie(request: Request, ahead: str, token: str, lasts: timedelta) -> Response:
    response = RedirectResponse(ahead, 303, {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
    response.set_cookie(
        cookie_of(request),
        token,
        max_age=int(lasts.total_seconds()),
        path="/",
        secure=request.scope["scheme"] in SECURE,
        httponly=True,
        samesite="lax",
    )
    return response
