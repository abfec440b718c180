"""`callboard events`: the events that are there, newest first."""

from typing import Any, Final, get_args

import click

from schemas.outcome import Status
from service.cli.api_client import as_json, at_service, event_of, printable
from service.cli.pages import behind, between, print_page
from service.core.settings import Settings

COLUMNS: Final = ("event_id", "accepted", "type", "status", "key", "attempts", "took ms")


@click.command(epilog="Example: callboard events --status dead --since 1h")
@click.option("--type", help="Only events of this type.")
@click.option("--status", type=click.Choice(get_args(Status)), help="Only events that stand so.")
@click.option("--key", help="Only events of this actor (partitionkey).")
@click.option("--source", help="Only events from there.")
@click.option("--id", help="Only events to which their source gave this id.")
@click.option("--parent", type=click.UUID, help="Only the children of this event.")
@between("events accepted")
@behind("event_id")
@as_json
@at_service
def events(as_json: bool, settings: Settings, **which: object) -> None:
    """List events, newest first. `callboard show` tells all of one."""
    print_page(settings, "/events", which, as_json, COLUMNS, _row)


def _row(item: dict[str, Any]) -> list[str]:
    event = event_of(item)
    accepted = event.accepted_at.isoformat(timespec="milliseconds")
    took = "" if event.took_ms is None else f"{event.took_ms:,.0f}"
    shown = (
        event.event_id,
        accepted,
        event.type,
        event.status,
        event.partitionkey or "",
        f"{event.attempts or 0}",
        took,
    )
    return [printable(value) for value in shown]
