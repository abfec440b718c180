"""`callboard forget`: every trace of a key, a subject or a source goes, and is counted again."""

import sys
from collections import Counter
from typing import Any

import click
import msgspec

from service.cli.api_client import BULK_TIMEOUT_S, ask, at_service
from service.cli.show import print_json
from service.cli.table import print_rows
from service.core.settings import Settings


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
    target = {name: value for name, value in which.items() if value is not None}
    if len(target) != 1:
        raise click.UsageError("Name one of --key, --subject, --source.")
    body = msgspec.json.encode({**target, "dry_run": dry_run})
    counts, answer = Counter[str](), dict[str, Any]()
    while not answer or (answer["more"] and not dry_run):
        answer = ask(settings, "POST", "/forget", content=body, timeout=BULK_TIMEOUT_S)
        counts.update(answer["found"])
    if as_json:
        print_json({**answer, "found": counts})
    else:
        left: dict[str, int] = answer["left"]
        print_rows(("what", "found", "left"), [_row(name, counts, left) for name in sorted({*counts, *left})])
        click.echo(_summary(counts, answer, dry_run), err=True)
    sys.exit(1 if answer["left"] else 0)


def _row(name: str, counts: Counter[str], left: dict[str, int]) -> tuple[str, str, str]:
    return name, f"{counts[name]:,}", f"{left.get(name, 0):,}"


def _summary(counts: Counter[str], answer: dict[str, Any], dry_run: bool) -> str:
    if dry_run:
        return f"{counts.total():,} {'or more ' if answer['more'] else ''}are there, none was removed (dry run)"
    if answer["left"]:
        return "Something is left, or came in meanwhile: stop who sends it, and try again."
    return f"{counts.total():,} were removed; counted again, nothing is left"
