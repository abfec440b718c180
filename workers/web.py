"""The web client: POST with an idempotency key, a deadline over all of it and a bound on the answer."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from string import punctuation
from typing import Any, Final
from urllib.parse import quote

import httpcore
import httpx
import msgspec
from msgspec import Struct

from service.core.destinations import PORTS, Allowed, literal
from service.core.errors import Outage, Reject, text_of
from workers.models.decompression import ACCEPT_ENCODING, CODINGS, unfolded
from workers.models.errors import ALONE_MAX, Fault, asked_wait_s, outcome_of

CONNECTIONS_MAX: Final = 200
REPLY_MAX: Final = 1_048_576
NEXT_S: Final = 2.0  # to an address that others stand behind
SAFE: Final = f"{punctuation} "  # a header is ASCII: the rest, in the name of a node, is percent-encoded


class Reply(Struct, frozen=True):
    status: int
    body: bytes


class Guarded:
    """Connects to the very address that it has checked: the host's name may lead elsewhere at the next look-up."""

    def __init__(self, backend: httpcore.AsyncNetworkBackend, allow: Allowed) -> None:
        self._backend: Final = backend
        self._allow: Final = allow
        self.sleep: Final = backend.sleep

    async def connect_tcp(self, host: str, port: int, **more: Any) -> Any:
        addresses = await _resolved(host, port)
        targets = (
            addresses
            if self._allow.host(host, port)
            else [address for address in addresses if self._allow.address(address)]
        )
        if not targets:
            raise _inside(host)
        for address in targets[:-1]:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self._backend.connect_tcp(address, port, **more | {"timeout": NEXT_S})
        return await self._backend.connect_tcp(targets[-1], port, **more)


class Web:
    """Made by `open_web`: one per process."""

    def __init__(self, http: httpx.AsyncClient, allow: Allowed) -> None:
        self._http = http
        self._allow = allow

    async def post(self, url: str, *, json: object, idempotency_key: str, timeout_s: float = 10.0) -> Reply:
        """The 2xx answer.

        Raises Outage for what passes (no connection, 5xx, 408, 429, too slow), Reject for a refusal (other 3xx, 4xx),
        for an address that is none and for one of the inside that is not allowed. What has not passed in a day of waits
        is one of the event's attempts from then on, but for a 429.
        """
        headers = {
            "idempotency-key": quote(idempotency_key, safe=SAFE),
            "content-type": "application/json",
            "accept-encoding": ACCEPT_ENCODING,  # which is unfolded here: httpx unfolds each piece without a bound
        }
        try:
            async with asyncio.timeout(timeout_s):
                request = self._http.build_request("POST", url, content=_encode(json), headers=headers)
                self._check(request.url)
                return await self._send(request)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise Reject(f"The address to post to is none ({error}): begin it with http:// or https://.") from error
        except TimeoutError as error:
            raise _outage(Fault("timeout", f"{_host(url)} gave no whole answer in {timeout_s:g} s.")) from error
        except httpx.RequestError as error:
            what = text_of(error)
            raise _outage(Fault("connection", f"{_host(url)} can't be reached ({what}).")) from error

    def _check(self, url: httpx.URL) -> None:
        """Checks an address in the URL: where a proxy of the environment connects, Guarded does not see it."""
        address, port = literal(url.host), url.port or PORTS.get(url.scheme, 0)
        if address is not None and not self._allow.host(url.host, port) and not self._allow.address(address):
            raise _inside(url.host)

    async def _send(self, request: httpx.Request) -> Reply:
        response = await self._http.send(request, stream=True)
        try:
            if not response.is_success:
                raise _refusal(response)
            return Reply(response.status_code, await _body(response))
        finally:
            await response.aclose()


@asynccontextmanager
async def open_web(allow: Allowed) -> AsyncIterator[Web]:
    limits = httpx.Limits(max_connections=CONNECTIONS_MAX)
    # The deadline of each call is the total one of `post`: httpx's own bounds a single read.
    # A cookie that one tenant's address sets is no other event's: none is kept.
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    async with httpx.AsyncClient(limits=limits, timeout=None, cookies=no_cookies) as http:  # noqa: S113
        # httpx hands no backend on to httpcore. What goes through a proxy has a transport of its own.
        pool: Any = http._transport._pool  # type: ignore[attr-defined]
        pool._network_backend = Guarded(pool._network_backend, allow)
        yield Web(http, allow)


async def _resolved(host: str, port: int) -> list[str]:
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpx.ConnectError(f"its name leads nowhere: {error}") from error
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


def _inside(host: str) -> Reject:
    # The message names the host only: whoever may send events need not learn the addresses behind it.
    message = f"{host} is an address of the inside (loopback, private, link-local or the like)"
    return Reject(f"{message}, where events lead nobody: allow it in CALLBOARD_WEB_ALLOW, if it should.")


def _encode(json: object) -> bytes:
    try:
        return msgspec.json.encode(json)
    except TypeError as error:
        raise Reject(f"What is to be posted is no JSON: {error}.") from error


def _refusal(response: httpx.Response) -> Exception:
    # Only the host is named: the path of a webhook is often its secret.
    answered = f"{response.url.host} answered HTTP {response.status_code}"
    fault = Fault(outcome_of(response.status_code), f"{answered}.", asked_wait_s(response.headers))
    if fault.outcome in ("server", "rate_limited"):
        return _outage(fault)
    return Reject(f"{answered} to our POST: look at the address and at what is posted.")


def _outage(fault: Fault) -> Outage:
    return fault.outage(None if fault.outcome == "rate_limited" else ALONE_MAX)


async def _body(response: httpx.Response) -> bytes:
    """The unfolded body, of REPLY_MAX bytes at most."""
    host, coding = response.url.host, response.headers.get("content-encoding", "")
    if coding.strip().lower() not in CODINGS:
        raise Reject(f"{host} answered in the encoding {coding[:20]!r}, which was not asked for.")
    body = bytearray()
    try:
        async for piece in unfolded(response.aiter_raw(), coding, host):
            body += piece
            if len(body) > REPLY_MAX:
                raise Reject(f"{host} answered with more than {REPLY_MAX} bytes.")
    except Fault as fault:
        raise _outage(fault) from fault
    return bytes(body)


def _host(url: str) -> str:
    return httpx.URL(url).host
