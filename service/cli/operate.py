"""`callboard dead | replay | cancel`: what operators do, over HTTP."""

from typing import Any, Final, get_args

import click
import msgspec

from schemas.outcome import Reason
from service.cli.api_client import BULK_TIMEOUT_S, NotFound, as_json, ask, at_service, printable
from service.cli.pages import LIMIT, between, print_page
from service.cli.show import pretty, print_json
from service.core.settings import Settings

COLUMNS: Final = ("dead_id", "at", "type", "reason", "attempts", "error")


@click.command(epilog="Example: callboard replay 0197b2c4-5d3e-7c1a-9f60-3a52d7c81e44")
@click.argument("event_id", type=click.UUID)
@click.option("--from", "step", help="Do this step and what follows anew; what is stored of those before it counts.")
@click.option(
    "--again", is_flag=True, help="Also where its actor's states can't be set back to what they were before it."
)
@at_service
def replay(event_id: object, step: str | None, again: bool, settings: Settings) -> None:
    """Run an ended event again, with what is stored of its steps. Its old run is kept.

    An event that is the last of its key begins with its actor's states as
    they were before it. Another one would add to them a second time: it is
    refused, with what it would do and pay for again, unless --again is given.
    """
    body = {"from": step} | ({"again": True} if again else {})
    answer = ask(settings, "POST", f"/events/{event_id}/replay", content=msgspec.json.encode(body))
    click.echo(f"{answer['event_id']} {answer['status']}, run {answer['run']}")


@click.command(epilog="Example: callboard cancel 0197b2c4-5d3e-7c1a-9f60-3a52d7c81e44")
@click.argument("event_id", type=click.UUID)
@at_service
def cancel(event_id: object, settings: Settings) -> None:
    """End an event that has not ended, wherever it is: waiting, scheduled or running."""
    answer = ask(settings, "POST", f"/events/{event_id}/cancel")
    click.echo(f"{answer['event_id']} {answer['status']}")


@click.group(no_args_is_help=True, epilog="Example: callboard dead list --reason attempts_exhausted")
def dead() -> None:
    """What could not be processed: list it, look at it, replay it after mending the cause, or discard it."""


def filtered(command: Any) -> Any:
    """The options that say which letters."""
    options = (
        click.option("--type", help="Only events of this type."),
        click.option(
            "--reason",
            type=click.Choice(get_args(Reason)),
            metavar="REASON",
            help=f"Only letters with this reason: {', '.join(get_args(Reason))}.",
        ),
        between("letters"),
        at_service,
    )
    for option in reversed(options):
        command = option(command)
    return command


def chosen(command: Any) -> Any:
    """The arguments of what is done to many at once."""
    command = click.option("--dry-run", is_flag=True, help="Only say how many fit.")(command)
    return click.argument("ids", metavar="[DEAD_IDS]...", nargs=-1, type=click.UUID)(command)


@dead.command("list")
@filtered
@LIMIT
@click.option("--cursor", help="Go on behind a page: what it said at its end.")
@as_json
def list_(as_json: bool, settings: Settings, **which: object) -> None:
    """The newest dead letters that fit."""
    print_page(settings, "/dead-letters", which, as_json, COLUMNS, _row)


@dead.command("show")
@click.argument("dead_id", type=click.UUID)
@as_json
@at_service
def show_(dead_id: object, as_json: bool, settings: Settings) -> None:
    """One dead letter with its error and the event, as it was said."""
    answer = ask(settings, "GET", f"/dead-letters/{dead_id}")
    if as_json:
        print_json(answer)
    else:
        click.echo(pretty(answer))


@dead.command("replay")
@filtered
@chosen
def replay_(**which: Any) -> None:
    """Run the events of these letters again: of DEAD_IDS, or of all that fit the options."""
    _bulk("POST", "/dead-letters/replay", "replayed", **which)


@dead.command("discard")
@filtered
@chosen
def discard(**which: Any) -> None:
    """Forget these letters: DEAD_IDS, or all that fit the options. Their events stay, as dead."""
    _bulk("DELETE", "/dead-letters", "discarded", **which)


def _bulk(method: str, path: str, done: str, settings: Settings, dry_run: bool, **which: Any) -> None:
    if not _named_fields(which):
        raise click.UsageError("Name DEAD_IDS or an option: everything at once is asked for by none.")
    body = msgspec.json.encode({**_named_fields(which), "dry_run": dry_run})
    answer = ask(settings, method, path, content=body, timeout=BULK_TIMEOUT_S)
    click.echo(f"{answer['matched']} fit, {answer['done']} {done}{' (dry run)' if dry_run else ''}")
    if answer["matched"] < len(which["ids"]):
        raise NotFound(f"{len(which['ids']) - answer['matched']} of the letters that were named are not there.")


def _named_fields(which: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in which.items() if value}


def _row(letter: dict[str, Any]) -> tuple[str, ...]:
    shown = {**letter, "error": letter["error"]["message"][:80]}
    return tuple(printable(str(shown[name] if shown[name] is not None else "")) for name in COLUMNS)
