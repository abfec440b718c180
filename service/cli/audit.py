"""`callboard audit`: who did what, newest first."""

from typing import Any, Final, get_args

import click
import msgspec

from service.audit import Action
from service.cli.api_client import as_json, ask, at_service, printable
from service.cli.show import print_json
from service.cli.table import print_rows
from service.cli.times import AT
from service.settings import Settings

ACTIONS: Final = get_args(Action)
COLUMNS: Final = ("at", "actor", "action", "event_id", "detail")


@click.command(epilog="Example: callboard audit --since 1h --action sign_in")
@click.option("--actor", help="Only what was done with this key, by its prefix.")
@click.option(
    "--action", type=click.Choice(get_args(Action)), metavar="ACTION", help=f"One of {', '.join(get_args(Action))}."
)
@click.option("--since", type=AT, help="Only what was done from then on: 2026-11-22T10:00:00Z, or 1h for an hour ago.")
@click.option("--until", type=AT, help="Only what was done before that.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 500))
@click.option("--cursor", type=click.UUID, help="Go on behind this op_id, the last one of a page.")
@as_json
@at_service
def audit(as_json: bool, settings: Settings, **which: object) -> None:
    """List who did what, newest first: replays, discards, sign-ins, documents, keys. It takes the scope admin."""
    page = ask(settings, "GET", "/operations", params={name: str(value) for name, value in which.items() if value})
    if as_json:
        print_json(page)
        return
    print_rows(COLUMNS, [_row(each) for each in page["items"]])
    if page["next"]:
        click.echo(f"There may be more: --cursor {page['next']}", err=True)


def _row(operation: dict[str, Any]) -> list[str]:
    detail = operation["detail"] and msgspec.json.encode(operation["detail"]).decode()
    shown = {**operation, "detail": detail}
    return [printable(str(shown[name] or "")) for name in COLUMNS]
