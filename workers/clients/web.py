"""The web client: POST with an idempotency key, a deadline over all of it and a bound on the answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from string import punctuation
from typing import Final
from urllib.parse import quote

import httpx
import msgspec
from msgspec import Struct

from service.errors import Outage, Reject, text_of
from workers.clients.faults import ALONE_MAX, Fault, asked_wait_s, outcome_of
from workers.clients.unfolding import ASKED, CODINGS, unfolded

CONNECTIONS_MAX: Final = 200
REPLY_MAX: Final = 1_048_576
SAFE: Final = f"{punctuation} "  # a header is ASCII: the rest, in the name of a node, is percent-encoded


class Reply(Struct, frozen=True):
    status: int
    body: bytes


class Web:
    """Made by `open_web`: one per process."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def post(self, url: str, *, json: object, idempotency_key: str, timeout_s: float = 10.0) -> Reply:
        """The 2xx answer.

        Raises Outage for what passes (no connection, 5xx, 408, 429, too slow), Reject for a refusal (other 3xx, 4xx)
        and for an address that is none. What has not passed in a day of waits is one of the event's attempts from then
        on, but for a 429.
        """
        headers = {
            "idempotency-key": quote(idempotency_key, safe=SAFE),
            "content-type": "application/json",
            "accept-encoding": ASKED,  # which is unfolded here: httpx unfolds each piece without a bound
        }
        try:
            async with asyncio.timeout(timeout_s):
                return await self._send(self._http.build_request("POST", url, content=_encode(json), headers=headers))
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise Reject(f"The address to post to is none ({error}): begin it with http:// or https://.") from error
        except TimeoutError as error:
            raise _outage(Fault("timeout", f"{_host(url)} gave no whole answer in {timeout_s:g} s.")) from error
        except httpx.RequestError as error:
            what = text_of(error)
            raise _outage(Fault("connection", f"{_host(url)} can't be reached ({what}).")) from error

    async def _send(self, request: httpx.Request) -> Reply:
        response = await self._http.send(request, stream=True)
        try:
            if not response.is_success:
                raise _refusal(response)
            return Reply(response.status_code, await _body(response))
        finally:
            await response.aclose()


@asynccontextmanager
async def open_web() -> AsyncIterator[Web]:
    limits = httpx.Limits(max_connections=CONNECTIONS_MAX)
    # The deadline of each call is the total one of `post`: httpx's own bounds a single read.
    # A cookie that one tenant's address sets is no other event's: none is kept.
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    async with httpx.AsyncClient(limits=limits, timeout=None, cookies=no_cookies) as http:  # noqa: S113
        yield Web(http)


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
    """Unfolded, with a bound on what comes out of it."""
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
