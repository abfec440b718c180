"""`callboard send`: one event in, and with --wait its end."""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import click
import httpx
import msgspec

from schemas.outcome import ENDED
from service.cli.api_client import NoService, as_json, at_service, get_event, open_client, patiently, request
from service.cli.show import present
from service.core.settings import Settings

NO_WORKER: Final = "No worker is running. Start one with `callboard worker` or `callboard up`, then the event goes on."
POLL_S: Final = 0.05
POLL_MAX_S: Final = 2.0
POLL_GROWTH: Final = 1.5

EPILOG: Final = """\b
Examples:
  callboard send ticket.opened --data @ticket.json --wait
  callboard send ticket.opened --data - --key customer-7 < ticket.json
"""


@click.command(epilog=EPILOG)
@click.argument("type_", metavar="TYPE")
@click.option("--data", required=True, metavar="JSON|@FILE|-", help="The event's data; - reads standard input.")
@click.option(
    "--key", "partitionkey", help="The actor's key (partitionkey): events with one key run one after the other."
)
@click.option("--id", help="Your own id: sending the same event again under it changes nothing.")
@click.option("--source", help="Where the event comes from; default /http.")
@click.option(
    "--wait", is_flag=True, help="Wait for the end and show it; exits with 1 unless it succeeded, 3 without a worker."
)
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Seconds.")
@as_json
@at_service
def send(
    type_: str, data: str, wait: bool, timeout_s: float, as_json: bool, settings: Settings, **attributes: str | None
) -> None:
    """Send one event of type TYPE. It is stored for good once its event_id is printed."""
    body = event_body(type_, read_data(data), **attributes)
    accepted = asyncio.run(_send(settings, body, timeout_s if wait else None))
    if wait:
        present(accepted, as_json)
        sys.exit(0 if accepted["status"] == "succeeded" else 1)
    if as_json:
        click.echo(msgspec.json.encode(accepted))
    else:
        click.echo(f"{accepted['event_id']} {accepted['status']}{' (sent before)' if accepted['duplicate'] else ''}")


def read_data(text: str) -> msgspec.Raw:
    """JSON as it was written, from the argument, a file (@FILE) or standard input (-)."""
    try:
        if text == "-":
            content = sys.stdin.buffer.read()
        elif text.startswith("@"):
            content = Path(text[1:]).read_bytes()
        else:
            content = text.encode("utf-8", "surrogateescape")
        msgspec.json.decode(content)
    except OSError as error:
        raise click.BadParameter(f"{text[1:]} can't be read: {error.strerror}.", param_hint="--data") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise click.BadParameter(f"this is not JSON: {error}.", param_hint="--data") from error
    return msgspec.Raw(content)


def event_body(type_: str, data: msgspec.Raw, **attributes: str | None) -> bytes:
    values = {name: value for name, value in attributes.items() if value is not None}
    return msgspec.json.encode({"type": type_, **values, "data": data})


async def post_event(client: httpx.AsyncClient, body: bytes) -> Any:
    return await request(client, "POST", "/events", content=body)


async def _send(settings: Settings, body: bytes, timeout_s: float | None) -> Any:
    """The answer to it; with a time-out the event after its end, and a service that is away is waited for as well."""
    async with open_client(settings) as client:
        accepted = await post_event(client, body)
        if timeout_s is None:
            return accepted
        event_id = accepted["event_id"]
        try:
            async with asyncio.timeout(timeout_s):
                return await _end_of(client, event_id)
        except TimeoutError as error:
            if not await _has_worker(client):
                raise NoService(f"{event_id} was not run within {timeout_s:g} s: {NO_WORKER}") from error
            raise click.ClickException(
                f"{event_id} has not ended within {timeout_s:g} s. It goes on; `callboard show {event_id}` tells how."
            ) from error


async def _has_worker(client: httpx.AsyncClient) -> bool:
    """Whether one lives; also where nobody can say: the service is away, or the key may not see it."""
    with suppress(click.ClickException):
        workers = (await request(client, "GET", "/workers"))["items"]
        return any(worker.get("alive", True) for worker in workers)
    return True


async def _end_of(client: httpx.AsyncClient, event_id: str) -> Any:
    if not await _has_worker(client):
        click.echo(f"{event_id} is stored. {NO_WORKER}", err=True)
    pause_s = POLL_S
    while True:
        event = await patiently(lambda: get_event(client, event_id))
        if event["status"] in ENDED:
            return event
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * POLL_GROWTH, POLL_MAX_S)
