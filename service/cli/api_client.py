"""What the commands know of the HTTP API: one client, typed answers, errors as sentences with an exit code."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

import click
import httpx
import msgspec
from msgspec import Struct
from msgspec.structs import replace

from service.settings import LOOPBACK, Settings, load

REQUEST_TIMEOUT_S = 30.0
PAUSE_S = 0.5
PAUSE_MAX_S = 30.0
ENDED = ("succeeded", "dead", "cancelled")
KEY_HINTS = {
    401: "\nSet CALLBOARD_API_KEY to a key that is valid there.",
    403: "\nSet CALLBOARD_API_KEY to a key that may do this.",
}

T = TypeVar("T")


class NoService(click.ClickException):
    exit_code = 3


class Refused(click.ClickException):
    """The service answered with a problem."""

    def __init__(self, status: int, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status: Final = status
        self.retry_after_s: Final = retry_after_s


class Accepted(Struct, frozen=True):
    event_id: str
    id: str
    source: str
    status: str
    duplicate: bool = False


class Moment(Struct, frozen=True):
    """One line of a timeline."""

    seq: int
    at: datetime
    what: str
    step: str | None = None
    attempt: int | None = None
    ms: float | None = None
    detail: Any = None


class EventView(Struct, frozen=True):
    event_id: str
    type: str
    status: str
    accepted_at: datetime
    source: str = ""
    id: str = ""
    partitionkey: str | None = None
    pipeline: str | None = None
    worker: str | None = None
    attempts: int | None = None
    attempts_max: int | None = None
    run: int | None = None
    due_at: datetime | None = None
    finished_at: datetime | None = None
    result: Any = None
    error: Any = None
    cost_usd: float = 0.0
    calls: int = 0
    timeline: list[Moment] = []

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def took_ms(self) -> float | None:
        return None if self.finished_at is None else (self.finished_at - self.accepted_at).total_seconds() * 1000


class Listed(Struct, frozen=True):
    event_id: str
    status: str


class Page(Struct, frozen=True):
    items: list[Listed]
    next: str | None = None


class FieldError(Struct, frozen=True):
    path: str = "$"
    message: str = ""


class Problem(Struct, frozen=True):
    title: str
    detail: str = ""
    errors: list[FieldError] = []


def settings_for(url: str | None) -> Settings:
    settings = load(os.environ)
    return replace(settings, url=url) if url else settings


def open_client(settings: Settings) -> httpx.AsyncClient:
    url = urlsplit(settings.url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise click.UsageError(f"CALLBOARD_URL={settings.url} is not an http:// or https:// address.")
    return httpx.AsyncClient(
        base_url=settings.url,
        timeout=REQUEST_TIMEOUT_S,
        headers={"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {},
        # A proxy from the environment can't reach this machine's own loopback.
        trust_env=url.hostname not in LOOPBACK,
    )


async def post_event(client: httpx.AsyncClient, body: bytes) -> Accepted:
    headers = {"Content-Type": "application/json"}
    return _decode(await request(client, "POST", "/events", content=body, headers=headers), Accepted)


async def get_event(client: httpx.AsyncClient, event_id: str) -> bytes:
    return await request(client, "GET", f"/events/{quote(event_id, safe='')}")


async def list_events(client: httpx.AsyncClient, **query: str) -> Page:
    return _decode(await request(client, "GET", "/events", params=query), Page)


def decode_event(body: bytes) -> EventView:
    return _decode(body, EventView)


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise NoService(f"What answers at CALLBOARD_URL is not this version of Callboard ({error}).") from error


async def request(client: httpx.AsyncClient, method: str, path: str, **sent: Any) -> bytes:
    """The body of a good answer.

    Raises NoService when nobody, or somebody else, answers there; Refused when Callboard says no.
    """
    try:
        response = await client.request(method, path, **sent)
    except httpx.TimeoutException as error:
        raise NoService(f"Callboard at {client.base_url} has not answered within {REQUEST_TIMEOUT_S:g} s.") from error
    except httpx.TransportError as error:
        raise NoService(
            f"No Callboard answers at {client.base_url} ({error or type(error).__name__}). "
            "Start one with `callboard up`, or set CALLBOARD_URL to where it runs."
        ) from error
    _check(response)
    return response.content


def _check(response: httpx.Response) -> None:
    kind = response.headers.get("content-type", "")
    if response.is_success and "json" in kind:
        return
    if "problem+json" not in kind:
        raise NoService(
            f"What answers at {response.url} is not Callboard ({response.status_code}, {kind or 'no content type'}). "
            "Set CALLBOARD_URL to where Callboard runs."
        )
    told = problem_sentence(response.content) + KEY_HINTS.get(response.status_code, "")
    raise Refused(response.status_code, told, _retry_after_s(response))


def problem_sentence(body: bytes) -> str:
    """Title, detail and the path of each wrong field of a problem+json answer."""
    problem = _decode(body, Problem)
    lines = [f"{problem.title}: {problem.detail}" if problem.detail else problem.title]
    lines += [f"  {error.path}: {error.message}" for error in problem.errors]
    return printable("\n".join(lines))


def printable(text: str) -> str:
    """Without control characters: text of others must not steer the terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """The answer, however often the service is busy or away in between; the caller's deadline bounds it."""
    while True:
        try:
            return await ask()
        except NoService:
            pause_s = PAUSE_S
        except Refused as error:
            if error.retry_after_s is None:
                raise
            pause_s = min(error.retry_after_s, PAUSE_MAX_S)
        await asyncio.sleep(pause_s)


def _retry_after_s(response: httpx.Response) -> float | None:
    given = response.headers.get("retry-after", "")
    if given.isdecimal():
        return float(given)
    busy = response.status_code in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
    return 1.0 if busy else None
