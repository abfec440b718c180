"""A page of what is there, newest first: the options of its commands, and how it is printed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import click

from service.cli.api_client import ask
from service.cli.show import print_json
from service.cli.table import Row, print_rows
from service.cli.times import AT
from service.core.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])

LIMIT: Final = click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 500))


def between(what: str) -> Callable[[Command], Command]:
    """--since and --until, for a command that is about `what`."""
    since = click.option(
        "--since", type=AT, help=f"Only {what} from then on: 2026-11-22T10:00:00Z, or 1h for an hour ago."
    )
    until = click.option("--until", type=AT, help=f"Only {what} before that.")
    return lambda command: since(until(command))


def behind(name: str) -> Callable[[Command], Command]:
    """--limit and --cursor, where a page ends with the id of that name."""
    cursor = click.option("--cursor", type=click.UUID, help=f"Go on behind this {name}, the last one of a page.")
    return lambda command: LIMIT(cursor(command))


def print_page(
    settings: Settings,
    path: str,
    which: Mapping[str, object],
    as_json: bool,
    columns: Row,
    row: Callable[[dict[str, Any]], Sequence[str]],
) -> None:
    """What fits, each in a row, and how to go on behind it."""
    page = ask(settings, "GET", path, params={name: str(value) for name, value in which.items() if value})
    if as_json:
        print_json(page)
        return
    print_rows(columns, [row(item) for item in page["items"]])
    if page["next"]:
        click.echo(f"There may be more: --cursor {page['next']}", err=True)
