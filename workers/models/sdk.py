"""The way through a provider's official SDK: JSON there and back, and whatever goes wrong as a Fault.

By `post`, which both SDKs have for what their typed methods do not know: those walk over arguments and build models of
replies, which is a third of what a call costs, and take HTML for a str and {} for a message full of None.
"""

import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from functools import lru_cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final, TypeVar

import aiohttp
import httpx2
import msgspec
from msgspec import Struct

from workers.models.decompression import ACCEPT_ENCODING, CODINGS, unfolded
from workers.models.errors import Fault, asked_wait_s, outcome_of
from workers.models.provider import Request, Texts
from workers.models.streaming import Listener, OnText, Response, StreamTimeouts, listen

T = TypeVar("T")

LIMITS: Final = httpx2.Limits(max_connections=1000)
ERROR_MAX: Final = 65_536
SIMULATED_HEADER: Final = "x-callboard-simulated"
NOT_SENT: Final = (
    ConnectionRefusedError,
    socket.gaierror,
    ssl.SSLCertVerificationError,
    httpx2.UnsupportedProtocol,
    httpx2.LocalProtocolError,
)
# What is raised where a request can't be made of our key, address or headers; whatever comes of a connection is an
# OSError, or one of the libraries' own. OpenAI's SDK lets the first through, Anthropic's wraps it.
UNMADE: Final = (ValueError, TypeError, httpx2.InvalidURL)


def transport(*, proxies: bool) -> dict[str, Any]:
    """The arguments of an SDK's HTTP client; `proxies`: whether the environment's proxies and certificates count.

    No redirect is followed: httpx2 takes `Authorization` from a request to another host, but not `x-api-key`.
    """
    named = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    return {
        "limits": LIMITS,
        "trust_env": proxies,
        "verify": _trusted(proxies, *named),
        "follow_redirects": False,
        "headers": {"accept-encoding": ACCEPT_ENCODING},
        "event_hooks": {"response": [_unfold]},
        # A cookie in one tenant's answer goes into no other tenant's request.
        "cookies": CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    }


def cookieless(http: T) -> T:
    """The SDK's HTTP client, with sessions of aiohttp that keep no cookies either: it has no other way to say so."""
    client: Any = http
    for inner in filter(None, (client._transport, *client._mounts.values())):
        inner.client = lambda ssl_context=inner.ssl_context: aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=LIMITS.max_connections or 0, keepalive_timeout=LIMITS.keepalive_expiry, ssl=ssl_context
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
    return http


class _Body(httpx2.AsyncByteStream):
    """An answer's body, unfolded as it comes; an error's is cut at ERROR_MAX, since the SDKs read all of it."""

    def __init__(self, response: httpx2.Response) -> None:
        self._folded: Any = response.stream
        self._coding = response.headers.pop("content-encoding", "")
        self._host = response.url.host
        self._is_success = response.is_success

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = ERROR_MAX
        if not self._is_success and self._coding.strip().lower() not in CODINGS:
            return
        async with aclosing(unfolded(aiter(self._folded), self._coding, self._host)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                if self._is_success:
                    yield piece
                else:
                    yield piece[:left]
                    left -= len(piece)
                    if left <= 0:
                        return

    async def aclose(self) -> None:
        await self._folded.aclose()


async def _unfold(response: httpx2.Response) -> None:
    """A reply that is not folded stays as it comes: whoever reads it counts its bytes."""
    if not (response.is_success and response.headers.get("content-encoding", "") in CODINGS[:2]):
        response.stream = _Body(response)


@lru_cache(maxsize=2)
def _trusted(from_environment: bool, _file: str | None, _folder: str | None) -> ssl.SSLContext:
    """One for all clients: reading the certificates takes 25 ms."""
    return httpx2.create_ssl_context(trust_env=from_environment)


def absolute(client: Any, path: str) -> str:
    """The address of a path, which the SDK's client would put together anew for each call: a twentieth of its time."""
    base = client.base_url
    return str(base.copy_with(raw_path=base.raw_path + path.lstrip("/").encode()))


class Sdk(Struct, frozen=True):
    """An SDK's client, the provider it asks, and what it raises: for an error status, and for all else."""

    client: Any
    name: str
    refused: type[Exception]
    failed: type[Exception]

    async def ask(
        self,
        path: str,
        body: Mapping[str, Any],
        request: Request | Texts,
        timeout_s: float,
        reply: type[T],
    ) -> tuple[T, bool]:
        """What was answered, and whether by the simulator. Raises Fault."""
        content, most = bytearray(), request.answer_max
        with self._faults():
            answer = await self._send(path, body, {"headers": request.headers, "timeout": timeout_s})
            try:
                async for piece in answer.aiter_bytes():
                    content += piece
                    if len(content) > most:
                        raise Fault("malformed", f"{self.name} answered with more than {most} bytes.")
            finally:
                await answer.aclose()
            return msgspec.json.decode(content, type=reply), SIMULATED_HEADER in answer.headers

    async def listen(
        self,
        path: str,
        body: Mapping[str, Any],
        request: Request,
        listener: Listener,
        timeouts: StreamTimeouts,
        on_text: OnText,
    ) -> bool:
        """A stream, to its end; returns whether the simulator said it. Raises Fault."""
        options = {"headers": request.headers, "timeout": timeouts.total_s}
        with self._faults():
            opening = self._opened(path, body, options)
            return SIMULATED_HEADER in await listen(opening, listener, timeouts, request.answer_max, on_text)

    @asynccontextmanager
    async def _opened(self, path: str, body: Mapping[str, Any], options: Mapping[str, Any]) -> AsyncIterator[Response]:
        answer = await self._send(path, body, options)
        try:
            yield answer
        finally:
            await answer.aclose()

    async def _send(self, path: str, body: Mapping[str, Any], options: Mapping[str, Any]) -> httpx2.Response:
        """The answer, its body not read yet. A request that could not be made was not sent, and so costs nothing."""
        try:
            answer: httpx2.Response = await self.client.post(
                path, cast_to=httpx2.Response, body=body, options=options, stream=True
            )
        except UNMADE as error:
            raise _unmade(self.name, error) from error
        except RuntimeError as error:  # uvloop's and aiohttp's, of what was closed under them, perhaps after sending
            raise Fault("connection", f"{self.name} can't be reached ({error}).") from error
        return answer

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except self.refused as error:
            raise _refusal(self.name, error) from error
        except (self.failed, httpx2.RequestError, aiohttp.ClientError) as error:  # the last from OpenAI's transport
            raise _unreachable(self.name, error) from error
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise Fault("malformed", f"{self.name} answered 200 with what is no reply: {error}.") from error


def _refusal(provider: str, error: Any) -> Fault:
    """An error status."""
    status, message, headers = error.status_code, error.message, error.response.headers
    code = getattr(error, "code", None) or error.type
    if code in ("insufficient_quota", "billing_error") or "credit balance" in message:
        return Fault("setup", f"{provider} says the account has no credit left.", free=True)
    if error.response.has_redirect_location:
        sentence = (
            f"{provider} answers with a redirect (HTTP {status}), which is not followed, since our key would go along"
        )
        return Fault("setup", f"{sentence}: look at its address.", free=True)
    outcome = outcome_of(status) if status >= 400 else "server"  # a redirect to nowhere is not for the event to mend
    if status in (401, 402, 403):
        # The provider's own words may hold a part of the key.
        return Fault(outcome, f"{provider} refuses our key (HTTP {status}): check it and its permissions.", free=True)
    refusal = f"{provider} answered HTTP {status}: {message[:300]}"
    return Fault(outcome, refusal, asked_wait_s(headers), free=400 <= status < 500)


def _unreachable(provider: str, error: Exception) -> Fault:
    """There was no whole answer."""
    cause = error if isinstance(error, httpx2.RequestError) else error.__cause__
    if isinstance(cause, UNMADE) and not isinstance(cause, (httpx2.RequestError, aiohttp.ClientError, OSError)):
        return _unmade(provider, cause)
    # The aiohttp transport takes a refused or lost connection for a connection that came too late.
    if isinstance(cause, httpx2.TimeoutException) and not isinstance(cause, httpx2.ConnectTimeout):
        return Fault("timeout", f"{provider} did not answer in time.")
    why = _why_not_sent(error)
    if isinstance(why, ssl.SSLCertVerificationError):
        message = f"the certificate of {provider} is not trusted ({why}): name its CA in SSL_CERT_FILE."
        return Fault("setup", message, free=True)
    return Fault("connection", f"{provider} can't be reached ({cause or error}).", free=why is not None)


def _unmade(provider: str, error: Exception) -> Fault:
    """Without the error's own words, which may name a letter of the key."""
    message = f"{provider} can't be asked ({type(error).__name__}): look for characters in its key or address that no "
    return Fault("setup", f"{message}HTTP request can hold.", free=True)


def _why_not_sent(error: BaseException | None) -> BaseException | None:
    """Why there was never a connection, if so: what was sent on one that got lost may be billed."""
    while error is not None and not isinstance(error, NOT_SENT):
        error = error.__cause__ or error.__context__
    return error
