"""`callboard tail`: what happens to one event while it happens, from its stream."""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

import click
import httpx
import msgspec

from service.cli.api_client import (
    REQUEST_TIMEOUT_S,
    NoService,
    Refused,
    open_client,
    patiently,
    printable,
    problem_sentence,
    settings_for,
)
from service.cli.show import pretty
from service.settings import Settings

SILENCE_MAX_S: Final = 60.0  # the stream says something every 15 s
CLOSED: Final = "the stream ended before the event"


@click.command(
    epilog="Example: callboard tail 0197b2c4-5d3e-7c1a-9f60-3a52d7c81e44",
    short_help="Follow one event until it ends, with replies as they are written.",
)
@click.argument("event_id", type=click.UUID)
@click.option("--json", "as_json", is_flag=True, help="Print each message as a line of JSON.")
@click.option("--url", help="The service's address; default CALLBOARD_URL.")
def tail(event_id: object, as_json: bool, url: str | None) -> None:
    """Follow the event EVENT_ID: its statuses, steps and streamed replies, until it ends.

    A service that goes away in between is waited for. Exits with 1 unless the event succeeded.
    """
    status = asyncio.run(_tail(settings_for(url), str(event_id), as_json))
    sys.exit(0 if status == "succeeded" else 1)


async def _tail(settings: Settings, event_id: str, as_json: bool) -> str:
    last, on_line = "", ("", "")

    async def follow() -> str:
        nonlocal last, on_line
        async for name, data, read in _messages(client, event_id, last):
            last = read
            if as_json:
                click.echo(msgspec.json.encode({"event": name, **data}))
            else:
                on_line = _print(name, data, on_line)
            if name == "end":
                return str(data["status"])
        raise NoService(CLOSED)

    async with open_client(settings) as client:
        try:
            return await follow()
        except NoService as error:
            if not last:
                raise
            click.echo(f"\n{error.message}: trying again", err=True)
            return await patiently(follow)


async def _messages(
    client: httpx.AsyncClient, event_id: str, last: str
) -> AsyncIterator[tuple[str, dict[str, Any], str]]:
    """Name, data and id of each."""
    headers = {"Last-Event-ID": last} if last else {}
    timeout = httpx.Timeout(REQUEST_TIMEOUT_S, read=SILENCE_MAX_S)
    fields: dict[str, str] = {"id": last}
    try:
        async with client.stream("GET", f"/events/{event_id}/stream", headers=headers, timeout=timeout) as response:
            if response.status_code != httpx.codes.OK:
                raise Refused(response.status_code, problem_sentence(await response.aread()))
            async for line in response.aiter_lines():
                name, _, value = line.partition(": ")
                if line:
                    fields[name] = value
                elif "data" in fields:
                    yield fields["event"], msgspec.json.decode(fields.pop("data")), fields["id"]
    except httpx.TransportError as error:
        raise NoService(f"No Callboard answers at {client.base_url} ({error or type(error).__name__})") from error


def _print(name: str, data: dict[str, Any], on_line: tuple[str, str]) -> tuple[str, str]:
    """Print a message; which reply the line that is open belongs to."""
    said = (data.get("step", ""), data.get("call", ""))
    if on_line[0] and (name != "token" or said != on_line):
        click.echo()
    match name:
        case "token":
            if said != on_line:
                click.echo(click.style(f"{printable(said[0])}: ", fg="cyan"), nl=False)
            click.echo(printable(data["text"]), nl=False)
            return said
        case "step":
            click.echo(f"{printable(data['step'])} {data['state']}, {data['ms']:.0f} ms")
        case "restart":
            click.echo(f"{printable(data['step'])} begins anew")
        case "status":
            click.echo(data["status"])
        case "end":
            click.echo(f"{data['status']}\n{pretty(data['result'])}" if data["result"] is not None else data["status"])
    return ("", "")
