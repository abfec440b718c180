"""What every LLM provider looks like from here: a request, an answer, a client that turns one into the other."""

import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Final, Literal, Protocol, runtime_checkable

import httpx2
from msgspec import Struct

from service.settings import Settings
from workers.clients.faults import Fault, asked_wait_s, outcome_of
from workers.clients.streaming import Patience, Told

LIMITS: Final = httpx2.Limits(max_connections=1000)
SIMULATED_HEADER: Final = "x-callboard-simulated"
SIMULATED_KEY: Final = "simulated"
TransportError = httpx2.RequestError
NOT_SENT: Final = (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)
Response = httpx2.Response


class Message(Struct, frozen=True):
    role: Literal["user", "assistant"]
    content: str


class Schema(Struct, frozen=True):
    """The JSON Schema a reply has to follow."""

    name: str
    body: dict[str, Any]


class Request(Struct, frozen=True):
    model: str
    system: str | None
    messages: tuple[Message, ...]
    schema: Schema | None
    max_tokens: int
    temperature: float | None
    headers: dict[str, str]


class Texts(Struct, frozen=True):
    """Texts to be made vectors of."""

    model: str
    texts: tuple[str, ...]
    headers: dict[str, str]
    max_tokens: ClassVar[int] = 0


class Answer(Struct, frozen=True):
    """A reply that has ended; `stop` says why. `vectors`: those of Texts, in that order."""

    text: str | None
    stop: Literal["end", "length", "refused"]
    tokens_in: int
    tokens_out: int
    simulated: bool
    vectors: list[list[float]] | None = None


class Client(Protocol):
    async def complete(self, request: Request, timeout_s: float) -> Answer:
        """Ask once. Raises Fault."""

    async def stream(self, request: Request, patience: Patience, told: Told) -> Answer:
        """Ask once, and tell the text as it comes: of a reply that ends well, all of it. Raises Fault."""


@runtime_checkable
class Embedder(Protocol):
    """What a client also is where its provider has embeddings."""

    async def embed(self, request: Texts, timeout_s: float) -> Answer:
        """Ask once, for `vectors`. Raises Fault."""


Connect = Callable[[Settings, str | None], AbstractAsyncContextManager[Client] | None]
"""A provider: opens its client with what the settings hold, or at the simulator's address; None where it has no key."""


def http_fault(provider: str, status: int, message: str, headers: Mapping[str, str], code: str) -> Fault:
    """An error status of a provider as a Fault."""
    if code in ("insufficient_quota", "billing_error") or "credit balance" in message:
        return Fault("setup", f"{provider} says the account has no credit left.", free=True)
    outcome = outcome_of(status)
    if status in (401, 402, 403):
        # The provider's own words may hold a part of the key.
        return Fault(outcome, f"{provider} refuses our key (HTTP {status}): check it and its permissions.", free=True)
    told = f"{provider} answered HTTP {status}: {message[:300]}"
    return Fault(outcome, told, asked_wait_s(headers), free=400 <= status < 500)


def unreachable(provider: str, error: Exception) -> Fault:
    """What an SDK says when there was no whole answer."""
    cause = error if isinstance(error, TransportError) else error.__cause__
    # The aiohttp transport takes a refused or lost connection for a connection that came too late.
    if isinstance(cause, httpx2.TimeoutException) and not isinstance(cause, httpx2.ConnectTimeout):
        return Fault("timeout", f"{provider} did not answer in time.")
    why = _why_not_sent(error)
    if isinstance(why, ssl.SSLCertVerificationError):
        told = f"the certificate of {provider} is not trusted ({why}): name its CA in SSL_CERT_FILE."
        return Fault("setup", told, free=True)
    return Fault("connection", f"{provider} can't be reached ({cause or error}).", free=why is not None)


def _why_not_sent(error: BaseException | None) -> BaseException | None:
    """Why there was never a connection, if so: what was sent on one that got lost may be billed."""
    while error is not None and not isinstance(error, NOT_SENT):
        error = error.__cause__ or error.__context__
    return error
