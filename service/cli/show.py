"""`callboard show`: one event with its steps, as a table on a terminal and as plain lines in a pipe."""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.cli.api_client import EventView, Moment, decode_event, get_event, open_client, printable, settings_for
from service.settings import Settings

COLUMNS = ("seq", "at", "what", "step", "attempt", "ms", "detail")
COLOURS = (("succeeded", "green"), ("dead", "red"), ("cancelled", "yellow"))


@click.command(
    epilog="Example: callboard show 0197b2c4-5d3e-7c1a-9f60-3a52d7c81e44 --json",
    short_help="Show one event: status, steps, result or error.",
)
@click.argument("event_id", type=click.UUID)
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer as JSON.")
@click.option("--url", help="The service's address; default CALLBOARD_URL.")
def show(event_id: object, as_json: bool, url: str | None) -> None:
    """Show the event EVENT_ID: its status, everything that happened to it, and its result or error.

    Exits with 1 when the event is dead.
    """
    body = asyncio.run(_fetch(settings_for(url), str(event_id)))
    present(body, as_json)
    sys.exit(1 if decode_event(body).status == "dead" else 0)


async def _fetch(settings: Settings, event_id: str) -> bytes:
    async with open_client(settings) as client:
        return await get_event(client, event_id)


def present(body: bytes, as_json: bool) -> None:
    """Print an event as the API returned it."""
    if as_json:
        click.echo(msgspec.json.format(body, indent=2))
        return
    view = decode_event(body)
    for name, value in summary(view):
        click.echo(f"{name:<9} {_coloured(value) if name == 'status' else value}")
    click.echo()
    print_rows(COLUMNS, [_row(moment) for moment in view.timeline])
    for name, content in (("result", view.result), ("error", view.error)):
        if content is not None:
            click.echo(f"\n{name}\n{pretty(content)}")


def summary(view: EventView) -> Iterator[tuple[str, str]]:
    """What is known of the event as a whole, in the order one asks for it."""
    yield "event", view.event_id
    yield "type", printable(view.type)
    yield "status", view.status
    yield "attempts", f"{view.attempts or 0} of {view.attempts_max}" if view.attempts_max else str(view.attempts or 0)
    for name, value in (("key", view.partitionkey), ("pipeline", view.pipeline), ("worker", view.worker)):
        if value:
            yield name, printable(value)
    yield "accepted", view.accepted_at.isoformat(timespec="milliseconds")
    if view.due_at and not view.ended:
        yield "due", view.due_at.isoformat(timespec="milliseconds")
    if view.took_ms is not None:
        yield "took", f"{view.took_ms:,.0f} ms"
    if view.calls:
        yield "calls", f"{view.calls} for ${view.cost_usd:.6f}"


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; elsewhere one line per row, fields parted by tabs, for cut and awk."""
    console = Console()
    if not console.is_terminal:
        for row in (columns, *rows):
            click.echo("\t".join(field.replace("\t", " ").replace("\n", " ") for field in row))
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*(Text(field) for field in row))
    console.print(table)


def pretty(content: Any) -> str:
    text = msgspec.json.format(msgspec.json.encode(content), indent=2).decode()
    return printable(text)


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


def _coloured(status: str) -> str:
    return click.style(status, fg=dict(COLOURS).get(status, "cyan"))
