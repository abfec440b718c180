"""What the commands know of the HTTP API: one client, errors as sentences with an exit code."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

import click
import httpx
import msgspec
from msgspec import Struct
from msgspec.structs import replace

from service.access.local_token import noted_token
from service.core.settings import LOOPBACK, Settings, load

REQUEST_TIMEOUT_S = 30.0
BULK_TIMEOUT_S = 3600.0  # what is done to many at once takes a millisecond or two for each
PAUSE_S = 0.5
PAUSE_MAX_S = 30.0
KEY_HINTS = {
    401: "\nSet CALLBOARD_API_KEY to a key that is valid there. Beside a `callboard up` none is needed where its data "
    "folder is (CALLBOARD_DATA_DIR).",
    403: "\nSet CALLBOARD_API_KEY to a key that may do this.",
}

T = TypeVar("T")


class NoService(click.ClickException):
    exit_code = 3


class Refused(click.ClickException):
    """The service answered with a problem."""

    exit_code = 5

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s: Final = retry_after_s


class NotFound(Refused):
    """What was named is not there."""

    exit_code = 4


class Moment(Struct, frozen=True):
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
    partitionkey: str | None = None
    pipeline: str | None = None
    worker: str | None = None
    attempts: int | None = None
    attempts_max: int | None = None
    due_at: datetime | None = None
    finished_at: datetime | None = None
    result: Any = None
    error: Any = None
    cost_usd: float = 0.0
    calls: int = 0
    timeline: list[Moment] = []

    @property
    def took_ms(self) -> float | None:
        return None if self.finished_at is None else (self.finished_at - self.accepted_at).total_seconds() * 1000


def settings_for(url: str | None) -> Settings:
    settings = load(os.environ)
    return replace(settings, url=url) if url else settings


at_service = click.option(
    "--url",
    "settings",
    callback=lambda _, __, url: settings_for(url),
    help="The service's address; default CALLBOARD_URL.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print the API's answer as JSON.")


def open_client(settings: Settings) -> httpx.AsyncClient:
    url = urlsplit(settings.url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise click.UsageError(f"CALLBOARD_URL={settings.url} is not an http:// or https:// address.")
    key = settings.api_key or (noted_token(settings.data_path) if url.hostname in LOOPBACK else "")
    return httpx.AsyncClient(
        base_url=settings.url,
        timeout=REQUEST_TIMEOUT_S,
        headers={"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})},
        # A proxy from the environment can't reach this machine's own loopback.
        trust_env=url.hostname not in LOOPBACK,
    )


def ask(settings: Settings, method: str, path: str, **sent: Any) -> Any:
    """One request, for a command that makes no other."""

    async def answer() -> Any:
        async with open_client(settings) as client:
            return await request(client, method, path, **sent)

    return asyncio.run(answer())


async def request(client: httpx.AsyncClient, method: str, path: str, **sent: Any) -> Any:
    """The JSON of a good answer.

    Raises NoService when nobody, or somebody else, answers there; Refused when Callboard says no.
    """
    try:
        response = await client.request(method, path, **sent)
    except httpx.TimeoutException as error:
        waited_s = sent.get("timeout", REQUEST_TIMEOUT_S)
        raise NoService(f"Callboard at {client.base_url} has not answered within {waited_s:g} s.") from error
    except httpx.TransportError as error:
        raise NoService(
            f"No Callboard answers at {client.base_url} ({error or type(error).__name__}). "
            "Start one with `callboard up`, or set CALLBOARD_URL to where it runs."
        ) from error
    kind = response.headers.get("content-type", "")
    if response.is_success and "json" in kind:
        return _decoded(response.content)
    if "problem+json" not in kind:
        raise NoService(
            f"What answers at {response.url} is not Callboard ({response.status_code}, {kind or 'no content type'}). "
            "Set CALLBOARD_URL to where Callboard runs."
        )
    raise refusal(response.status_code, response.content, response.headers.get("retry-after", ""))


async def get_event(client: httpx.AsyncClient, event_id: str) -> Any:
    return await request(client, "GET", f"/events/{quote(event_id, safe='')}")


def event_of(answer: Any) -> EventView:
    event: EventView = _decoded(msgspec.json.encode(answer), EventView)
    return event


def refusal(status: int, body: bytes, retry_after: str = "") -> Refused:
    """Title, detail and the path of each wrong field of a problem+json answer."""
    problem = _decoded(body, dict[str, Any])
    lines = [": ".join(str(problem[name]) for name in ("title", "detail") if problem.get(name))]
    lines += [f"  {error['path']}: {error['message']}" for error in problem.get("errors", ())]
    after_s = float(retry_after) if retry_after.isdecimal() else 1.0 if status in (429, 503) else None
    kind = NotFound if status == httpx.codes.NOT_FOUND else Refused
    return kind(printable("\n".join(lines)) + KEY_HINTS.get(status, ""), after_s)


def _decoded(body: bytes, kind: Any = Any) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise NoService(f"What answers at CALLBOARD_URL is not this version of Callboard ({error}).") from error


def printable(text: str) -> str:
    """Without control characters: text of others must not steer the terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


async def patiently(act: Callable[[], Awaitable[T]]) -> T:
    """What it gives, however often the service is busy or away in between; the caller's deadline bounds it."""
    while True:
        try:
            return await act()
        except NoService:
            pause_s = PAUSE_S
        except Refused as error:
            if error.retry_after_s is None:
                raise
            pause_s = min(error.retry_after_s, PAUSE_MAX_S)
        await asyncio.sleep(pause_s)
