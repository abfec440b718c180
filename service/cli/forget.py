"""`callboard forget`: every trace of a key, a subject or a source goes, and is counted again."""

import sys
from collections import Counter
from typing import Any

import click
import msgspec

from service.cli.api_client import BULK_TIMEOUT_S, ask, at_service
from service.cli.show import print_json
from service.cli.table import print_rows
from service.settings import Settings


@click.command(epilog="Example: callboard forget --key customer-42 --dry-run")
@click.option("--key", help="Everything of this actor (partitionkey).")
@click.option("--subject", help="Everything of events with this CloudEvents subject.")
@click.option("--source", help="Everything of events from there.")
@click.option("--dry-run", is_flag=True, help="Only say how much there is.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
@at_service
def forget(dry_run: bool, as_json: bool, settings: Settings, **which: str | None) -> None:
    """Remove every trace of a key, a subject or a source, and say how many of each there were.

    Its events with their attempts, calls, journal, runs and dead letters,
    what they caused, the memory of actors that they went into, documents,
    and entries of the streams. What runs is stopped first. Afterwards all is
    looked through again: exits with 1 where something is left. There is no
    way back but a backup, which knows it still. It takes the scope admin.
    """
    asked = {name: value for name, value in which.items() if value is not None}
    if len(asked) != 1:
        raise click.UsageError("Name one of --key, --subject, --source.")
    body = msgspec.json.encode({**asked, "dry_run": dry_run})
    found, told = Counter[str](), dict[str, Any]()
    while not told or (told["more"] and not dry_run):
        told = ask(settings, "POST", "/forget", content=body, timeout=BULK_TIMEOUT_S)
        found.update(told["found"])
    if as_json:
        print_json({**told, "found": found})
    else:
        print_rows(
            ("what", "found", "left"), [_row(name, found, told["left"]) for name in sorted({*found, *told["left"]})]
        )
        click.echo(_summary(found, told, dry_run), err=True)
    sys.exit(1 if told["left"] else 0)


def _row(name: str, found: Counter[str], left: dict[str, int]) -> tuple[str, str, str]:
    return name, f"{found[name]:,}", f"{left.get(name, 0):,}"


def _summary(found: Counter[str], told: dict[str, Any], dry_run: bool) -> str:
    if dry_run:
        return f"{found.total():,} {'or more ' if told['more'] else ''}are there, none was removed (dry run)"
    if told["left"]:
        return "Something is left, or came in meanwhile: stop who sends it, and try again."
    return f"{found.total():,} were removed; counted again, nothing is left"
