"""`callboard audit`: who did what, newest first."""

from typing import Any, Final, get_args

import click
import msgspec

from service.access.audit import Action
from service.cli.api_client import as_json, at_service, printable
from service.cli.pages import behind, between, print_page
from service.core.settings import Settings

ACTIONS: Final = get_args(Action)
COLUMNS: Final = ("at", "actor", "action", "event_id", "detail")


@click.command(epilog="Example: callboard audit --since 1h --action sign_in")
@click.option("--actor", help="Only what was done with this key, by its prefix.")
@click.option(
    "--action", type=click.Choice(get_args(Action)), metavar="ACTION", help=f"One of {', '.join(get_args(Action))}."
)
@between("what was done")
@behind("op_id")
@as_json
@at_service
def audit(as_json: bool, settings: Settings, **which: object) -> None:
    """List who did what, newest first: replays, discards, sign-ins, documents, keys. It takes the scope admin."""
    print_page(settings, "/operations", which, as_json, COLUMNS, _row)


def _row(operation: dict[str, Any]) -> list[str]:
    detail = operation["detail"] and msgspec.json.encode(operation["detail"]).decode()
    shown = {**operation, "detail": detail}
    return [printable(str(shown[name] or "")) for name in COLUMNS]
