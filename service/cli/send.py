"""`callboard send`: one event in, and with --wait its end."""

import asyncio
import sys
from pathlib import Path

import click
import httpx
import msgspec

from service.cli.api_client import (
    Accepted,
    decode_event,
    get_event,
    open_client,
    patiently,
    post_event,
    settings_for,
)
from service.cli.show import present
from service.settings import Settings

POLL_S = 0.05
POLL_MAX_S = 2.0
POLL_GROWTH = 1.5

EPILOG = """\b
Examples:
  callboard send ticket.opened --data @ticket.json --wait
  echo '{"ticket_id": "T-1", "subject": "Hello", "body": "Where is my order?"}' \\
    | callboard send ticket.opened --data - --key customer-7
"""


@click.command(epilog=EPILOG, short_help="Send one event, and with --wait see what became of it.")
@click.argument("type_", metavar="TYPE")
@click.option(
    "--data", "given", required=True, metavar="JSON|@FILE|-", help="The event's data; - reads standard input."
)
@click.option("--key", help="The actor's key (partitionkey): events with one key run one after the other.")
@click.option("--id", "id_", help="Your own id: sending the same event again under it changes nothing.")
@click.option("--source", help="Where the event comes from; default /http.")
@click.option("--wait", is_flag=True, help="Wait for the end and show it; exits with 1 unless it succeeded.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer as JSON.")
@click.option("--url", help="The service's address; default CALLBOARD_URL.")
def send(
    type_: str,
    given: str,
    key: str | None,
    id_: str | None,
    source: str | None,
    wait: bool,
    timeout_s: float,
    as_json: bool,
    url: str | None,
) -> None:
    """Send one event of type TYPE. It is stored for good once its event_id is printed."""
    body = event_body(type_, read_data(given), partitionkey=key, id=id_, source=source)
    sys.exit(asyncio.run(_send(settings_for(url), body, timeout_s if wait else None, as_json)))


def read_data(given: str) -> msgspec.Raw:
    """JSON as it was written, from the argument, a file (@FILE) or standard input (-)."""
    if given == "-":
        content = sys.stdin.buffer.read()
    elif given.startswith("@"):
        content = _read_file(given[1:])
    else:
        content = given.encode("utf-8", "surrogateescape")
    try:
        msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise click.BadParameter(f"this is not JSON: {error}.", param_hint="--data") from error
    return msgspec.Raw(content)


def _read_file(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise click.BadParameter(f"{name} can't be read: {error.strerror}.", param_hint="--data") from error


def event_body(type_: str, data: msgspec.Raw, **attributes: str | None) -> bytes:
    given = {name: value for name, value in attributes.items() if value is not None}
    return msgspec.json.encode({"type": type_, **given, "data": data})


async def _send(settings: Settings, body: bytes, timeout_s: float | None, as_json: bool) -> int:
    async with open_client(settings) as client:
        accepted = await post_event(client, body)
        if timeout_s is None:
            _print_accepted(accepted, as_json)
            return 0
        end = await wait_for_end(client, accepted.event_id, timeout_s)
    present(end, as_json)
    return 0 if decode_event(end).status == "succeeded" else 1


def _print_accepted(accepted: Accepted, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(accepted))
    else:
        click.echo(f"{accepted.event_id} {accepted.status}{' (sent before)' if accepted.duplicate else ''}")


async def wait_for_end(client: httpx.AsyncClient, event_id: str, timeout_s: float) -> bytes:
    """The event as the API shows it after its end; a service that is away for a while is waited for as well."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _poll(client, event_id)
    except TimeoutError as error:
        raise click.ClickException(
            f"{event_id} has not ended within {timeout_s:g} s. It goes on; `callboard show {event_id}` tells how."
        ) from error


async def _poll(client: httpx.AsyncClient, event_id: str) -> bytes:
    pause_s = POLL_S
    while True:
        body = await patiently(lambda: get_event(client, event_id))
        if decode_event(body).ended:
            return body
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * POLL_GROWTH, POLL_MAX_S)
