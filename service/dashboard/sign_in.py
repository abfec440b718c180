"""`/login` and `/logout`: a key becomes a session, so that a browser holds no key."""

from datetime import timedelta
from typing import Any, Final
from urllib.parse import parse_qs, quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from service.dashboard.look import Look
from service.http.auth import SECURE, cookie_of, of_kind, refuse_cross_site, session
from service.http.door import door, read_body
from service.keys import KEY, sign_in, sign_out

LASTS: Final = timedelta(days=7)
FORM_MAX: Final = 4_096
NO_KEY: Final = "That is no key that is valid here: it may be mistyped, expired or revoked."
NOT_TO_READ: Final = "That key may not read: sign in with one that has the scope `read`."


def to_login(request: Request) -> Response:
    """Where a page was asked for and nobody is signed in."""
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"/login?next={quote(request.url.path + query, safe='')}", 303)


async def login_page(mine: Look, request: Request, common: dict[str, Any]) -> Response:
    """The form; of a key sent by it a new session, or why not. Before the first key there is nothing to sign in to."""
    if not (await door(request).keys.verdict("")).any_made:
        return RedirectResponse("/", 303)
    if request.method != "POST":
        return mine.page("login.html", **common, next=own_path(request.query_params.get("next", "")), wrong=None)
    refuse_cross_site(request)
    form = parse_qs((await read_body(request, FORM_MAX)).decode("utf-8", "replace"))
    text, ahead = (form.get(name, [""])[0].strip() for name in ("key", "next"))
    key = (await door(request).keys.verdict(of_kind(text, KEY))).key
    if key is None or not key.may("read"):
        wrong, status = (NO_KEY, 401) if key is None else (NOT_TO_READ, 403)
        return mine.page("login.html", status, **common, next=own_path(ahead), wrong=wrong)
    token = await sign_in(door(request).pool, key, LASTS)
    return _with_cookie(request, own_path(ahead), token, LASTS)


async def logout(request: Request) -> Response:
    refuse_cross_site(request)
    token = session(request)
    await sign_out(door(request).pool, token)
    door(request).keys.forget(token)
    return _with_cookie(request, "/login", "", timedelta())


def own_path(text: str) -> str:
    """A path of this site; anything else is the first page."""
    return text if text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable() else "/"


def _with_cookie(request: Request, ahead: str, token: str, lasts: timedelta) -> Response:
    response = RedirectResponse(ahead, 303, {"Cache-Control": "no-store"})
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
