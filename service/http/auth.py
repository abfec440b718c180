"""Who asks, and may they? Each route names the scope it takes; `caller(request)` is who was let in."""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Final, Literal

from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.access.keys import KEYS, SESSION, Key, Scope
from service.http.app_state import state_of

Need = Literal["open"] | Scope
Endpoint = Callable[[Request], Awaitable[Response]]

REALM: Final = 'Bearer realm="callboard"'
SAFE: Final = ("GET", "HEAD", "OPTIONS")
SECURE: Final = ("https", "wss")  # a proxy may say either in X-Forwarded-Proto
NO_KEY: Final = (
    "a key is needed: send the header `Authorization: Bearer cb_…` (`callboard keys create` makes one; "
    "on the machine of a `callboard up`, the file `token` in its data folder has one)"
)
WRONG_KEY: Final = "the key that was sent is none that is valid here: it may be mistyped, expired or revoked"
CROSS_SITE: Final = "another site's page sent this; only this one's own pages and programs may"


class Caller(Struct, frozen=True):
    """Who was let in: everything they read and write is the tenant's; `actor` goes on record with what they do."""

    tenant: str
    actor: str
    key: Key

    @property
    def quota_key(self) -> str | None:
        """The prefix of the key, where it counts which of its events are open."""
        return self.key.prefix if self.key.max_open is not None else None


def caller(request: Request) -> Caller:
    known: Caller = request.state.caller
    return known


def guarded(need: Need, endpoint: Endpoint) -> Endpoint:
    """The endpoint, for those who have the scope. What changes something is answered, however large the answer is."""

    @wraps(endpoint)
    async def checked(request: Request) -> Response:
        request.state.changes = need not in ("read", "open")
        if need != "open":
            await admit(request, need)
        return await endpoint(request)

    return checked


async def admit(request: Request, scope: Scope) -> None:
    """Raises HTTPException 401 without a valid key, 403 without the scope, and Unavailable while Postgres is away.

    The client's address does not count: a request that a proxy on this machine forwards has this machine's address.
    """
    bearer = _bearer(request)
    if bearer is None:
        refuse_cross_site(request)
        presented = of_kind(session(request), SESSION)
    else:
        presented = of_kind(bearer, *KEYS)
    request.state.caller = _keyed(await state_of(request).keys.find(presented), bearer, scope)


def of_kind(text: str, *kinds: str) -> str:
    """A key is a bearer's, a session a browser's cookie's: neither does in the other's place."""
    return text if text.startswith(kinds) else ""


def session(request: Request) -> str:
    """What the browser has from signing in, or nothing."""
    return request.cookies.get(cookie_of(request), "")


def cookie_of(request: Request) -> str:
    """The name of the session's cookie; over https one that no other host can set."""
    return "__Host-callboard" if request.scope["scheme"] in SECURE else "callboard"


def refuse_cross_site(request: Request) -> None:
    """Raises HTTPException 403 where a browser says that a page of another site sent it.

    By Sec-Fetch-Site, which browsers send to https and loopback, else by Origin; programs send neither.
    """
    if request.method in SAFE:
        return
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    from_host = (origin or "").partition("://")[2]
    own = site in ("same-origin", "none") if site else from_host == request.headers.get("host")
    if (site or origin) and not own:
        raise HTTPException(403, CROSS_SITE)


def _bearer(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _keyed(key: Key | None, bearer: str | None, scope: Scope) -> Caller:
    if key is None and bearer is None:
        raise HTTPException(401, NO_KEY, {"WWW-Authenticate": REALM})
    if key is None:
        raise HTTPException(401, WRONG_KEY, {"WWW-Authenticate": f'{REALM}, error="invalid_token"'})
    if not key.may(scope):
        detail = f"the key {key.prefix} lacks the scope `{scope}` (`callboard keys create --scope {scope}` makes one)"
        raise HTTPException(403, detail, {"WWW-Authenticate": f'{REALM}, error="insufficient_scope", scope="{scope}"'})
    return Caller(key.tenant, key.prefix, key)
