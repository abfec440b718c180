"""One event: `callboard show`, how it stands, and `callboard tail`, what happens to it while it happens."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import click
import httpx
import msgspec

from schemas.outcome import ENDED
from service.cli.api_client import (
    REQUEST_TIMEOUT_S,
    EventView,
    Moment,
    NoService,
    as_json,
    ask,
    at_service,
    event_of,
    open_client,
    patiently,
    printable,
    refusal,
)
from service.cli.table import print_rows
from service.core.settings import Settings

COLUMNS: Final = ("seq", "at", "what", "step", "attempt", "ms", "detail")
COLOURS: Final = {"succeeded": "green", "dead": "red", "cancelled": "yellow"}
CHILD_COLUMNS: Final = ("event_id", "status", "type", "id")
CHILDREN_MAX: Final = 20
SILENCE_MAX_S: Final = 60.0  # the stream says something every 15 s


@click.command(epilog="Example: callboard show 0197b2c4-5d3e-7c1a-9f60-3a52d7c81e44 --json")
@click.argument("event_id", type=click.UUID)
@as_json
@at_service
def show(event_id: object, as_json: bool, settings: Settings) -> None:
    """Show the event EVENT_ID: its status, everything that happened to it, its children, and its result or error.

    Exits with 1 when the event is dead, with 4 when there is none.
    """
    answer = ask(settings, "GET", f"/events/{event_id}")
    present(answer, as_json)
    if not as_json:
        _present_children(settings, event_id)
    sys.exit(1 if answer["status"] == "dead" else 0)


def present(answer: Any, as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    event = event_of(answer)
    for name, value in _summary(event):
        shown = click.style(value, fg=COLOURS.get(value, "cyan")) if name == "status" else value
        click.echo(f"{name:<9} {shown}")
    click.echo()
    print_rows(COLUMNS, [_row(moment) for moment in event.timeline])
    for name, content in (("result", event.result), ("error", event.error)):
        if content is not None:
            click.echo(f"\n{name}\n{pretty(content)}")


def _present_children(settings: Settings, event_id: object) -> None:
    page = ask(settings, "GET", "/events", params={"parent": str(event_id), "limit": str(CHILDREN_MAX)})
    if page["items"]:
        click.echo("\nchildren")
        print_rows(CHILD_COLUMNS, [[printable(child[name]) for name in CHILD_COLUMNS] for child in page["items"]])
    if page["next"]:
        click.echo(f"There may be more: callboard events --parent {event_id}", err=True)


def _summary(event: EventView) -> Iterator[tuple[str, str]]:
    """What is known of the event as a whole, in the order one asks for it."""
    yield "event", event.event_id
    yield "type", printable(event.type)
    yield "status", event.status
    yield "attempts", f"{event.attempts or 0}{f' of {event.attempts_max}' if event.attempts_max else ''}"
    for name, value in (("key", event.partitionkey), ("pipeline", event.pipeline), ("worker", event.worker)):
        if value:
            yield name, printable(value)
    yield "accepted", event.accepted_at.isoformat(timespec="milliseconds")
    if event.due_at and event.status not in ENDED:
        yield "due", event.due_at.isoformat(timespec="milliseconds")
    if event.took_ms is not None:
        yield "took", f"{event.took_ms:,.0f} ms"
    if event.calls:
        yield "calls", f"{event.calls} for ${event.cost_usd:.6f}"


def _row(moment: Moment) -> list[str]:
    detail = moment.detail if isinstance(moment.detail, str) else msgspec.json.encode(moment.detail).decode()
    return [
        str(moment.seq),
        moment.at.strftime("%H:%M:%S.%f")[:-3],
        moment.what,
        printable(moment.step or ""),
        "" if moment.attempt is None else str(moment.attempt),
        "" if moment.ms is None else f"{moment.ms:.1f}",
        "" if moment.detail in (None, {}) else printable(detail),
    ]


def print_json(content: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(content), indent=2))


def pretty(content: Any) -> str:
    return printable(msgspec.json.format(msgspec.json.encode(content), indent=2).decode())


@click.command(epilog="Example: callboard tail 0197b2c4-5d3e-7c1a-9f60-3a52d7c81e44")
@click.argument("event_id", type=click.UUID)
@click.option("--json", "as_json", is_flag=True, help="Print each message as a line of JSON.")
@at_service
def tail(event_id: object, as_json: bool, settings: Settings) -> None:
    """Follow the event EVENT_ID: its statuses, steps and streamed replies, until it ends.

    A service that goes away in between is waited for. Exits with 1 unless the event succeeded.
    """
    status = asyncio.run(_tail(settings, str(event_id), as_json))
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
        raise NoService("the stream ended before the event")

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
                raise refusal(response.status_code, await response.aread())
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
    call = (data.get("step", ""), data.get("call", ""))
    if on_line[0] and (name != "token" or call != on_line):
        click.echo()
    match name:
        case "token":
            if call != on_line:
                click.echo(click.style(f"{printable(call[0])}: ", fg="cyan"), nl=False)
            click.echo(printable(data["text"]), nl=False)
            return call
        case "step":
            click.echo(f"{printable(data['step'])} {data['state']}, {data['ms']:.0f} ms")
        case "restart":
            click.echo(f"{printable(data['step'])} begins anew")
        case "status":
            click.echo(data["status"])
        case "end":
            click.echo(f"{data['status']}\n{pretty(data['result'])}" if data["result"] is not None else data["status"])
    return ("", "")
