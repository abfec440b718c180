"""`callboard dead | replay | cancel`: what operators do, over HTTP."""

import asyncio
from typing import Any
from urllib.parse import quote

import click
import msgspec

from service.cli.api_client import open_client, printable, request, settings_for
from service.cli.show import pretty, print_rows

COLUMNS = ("dead_id", "at", "type", "reason", "attempts", "error")
REASONS = (
    "attempts_exhausted",
    "rejected",
    "crash_loop",
    "invalid",
    "too_large",
    "journal_mismatch",
    "deadline",
)
JSON = {"Content-Type": "application/json"}


def ask(url: str | None, method: str, path: str, **sent: Any) -> Any:
    """One request, decoded."""

    async def fetch() -> bytes:
        async with open_client(settings_for(url)) as client:
            return await request(client, method, path, **sent)

    return msgspec.json.decode(asyncio.run(fetch()))


@click.command(epilog="Example: callboard replay 0197b2c4-5d3e-7c1a-9f60-3a52d7c81e44")
@click.argument("event_id", type=click.UUID)
@click.option("--url", help="The service's address; default CALLBOARD_URL.")
def replay(event_id: object, url: str | None) -> None:
    """Run an ended event again, from the start. Its old run is kept."""
    told = ask(url, "POST", f"/events/{event_id}/replay", content=b"{}", headers=JSON)
    click.echo(f"{told['event_id']} {told['status']}, run {told['run']}")


@click.command(epilog="Example: callboard cancel 0197b2c4-5d3e-7c1a-9f60-3a52d7c81e44")
@click.argument("event_id", type=click.UUID)
@click.option("--url", help="The service's address; default CALLBOARD_URL.")
def cancel(event_id: object, url: str | None) -> None:
    """End an event that has not ended, wherever it is: waiting, scheduled or running."""
    told = ask(url, "POST", f"/events/{event_id}/cancel")
    click.echo(f"{told['event_id']} {told['status']}")


@click.group(
    no_args_is_help=True,
    epilog="Example: callboard dead list --reason attempts_exhausted",
    short_help="List, show, replay and discard dead letters.",
)
def dead() -> None:
    """What could not be processed: list it, look at it, replay it after mending the cause, or discard it."""


def filtered(command: Any) -> Any:
    """The options that say which letters."""
    options = (
        click.option("--type", "type_", help="Only events of this type."),
        click.option("--reason", type=click.Choice(REASONS), help="Only letters with this reason."),
        click.option("--since", help="Only letters from this time on, such as 2026-11-22T10:00:00Z."),
        click.option("--until", help="Only letters before this time."),
        click.option("--url", help="The service's address; default CALLBOARD_URL."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@dead.command("list")
@filtered
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 500))
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer as JSON.")
def list_(limit: int, as_json: bool, url: str | None, **which: str | None) -> None:
    """The newest dead letters that fit."""
    page = ask(url, "GET", "/dead-letters", params={**_given(which), "limit": str(limit)})
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(page), indent=2))
        return
    print_rows(COLUMNS, [_row(each) for each in page["items"]])


@dead.command("show")
@click.argument("dead_id", type=click.UUID)
@click.option("--url", help="The service's address; default CALLBOARD_URL.")
def show_(dead_id: object, url: str | None) -> None:
    """One dead letter with its error and the event, as it was said."""
    click.echo(pretty(ask(url, "GET", f"/dead-letters/{quote(str(dead_id))}")))


@dead.command("replay")
@filtered
@click.option("--dry-run", is_flag=True, help="Only say how many fit.")
@click.argument("dead_ids", nargs=-1, type=click.UUID)
def replay_(dead_ids: tuple[object, ...], dry_run: bool, url: str | None, **which: str | None) -> None:
    """Run the events of these letters again: of DEAD_IDS, or of all that fit the options."""
    _bulk("POST", "/dead-letters/replay", "replayed", dead_ids, dry_run, url, which)


@dead.command("discard")
@filtered
@click.option("--dry-run", is_flag=True, help="Only say how many fit.")
@click.argument("dead_ids", nargs=-1, type=click.UUID)
def discard(dead_ids: tuple[object, ...], dry_run: bool, url: str | None, **which: str | None) -> None:
    """Forget these letters: DEAD_IDS, or all that fit the options. Their events stay, as dead."""
    _bulk("DELETE", "/dead-letters", "discarded", dead_ids, dry_run, url, which)


def _bulk(
    method: str,
    path: str,
    done: str,
    dead_ids: tuple[object, ...],
    dry_run: bool,
    url: str | None,
    which: dict[str, str | None],
) -> None:
    body: dict[str, Any] = {**_given(which), "dry_run": dry_run}
    if dead_ids:
        body["ids"] = [str(each) for each in dead_ids]
    told = ask(url, method, path, content=msgspec.json.encode(body), headers=JSON)
    click.echo(f"{told['matched']} fit, {told['done']} {done}{' (dry run)' if dry_run else ''}")


def _given(which: dict[str, str | None]) -> dict[str, str]:
    return {name.rstrip("_"): value for name, value in which.items() if value is not None}


def _row(letter: dict[str, Any]) -> tuple[str, ...]:
    shown = {**letter, "error": letter["error"]["message"][:80]}
    return tuple(printable(str(shown[name] if shown[name] is not None else "")) for name in COLUMNS)
