"""`callboard keys create | list | limit | revoke | sign-out`: straight to Postgres: the first key needs none."""

import asyncio
import os
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final, get_args

import asyncpg
import click

from service.access.keys import KEY, PREFIX_CHARS, SQL, Scope, mint, presented
from service.access.rates import read_rate
from service.cli.api_client import NotFound
from service.cli.show import print_json
from service.cli.table import print_rows
from service.core.errors import StartError
from service.core.servers import POSTGRES_ERRORS, connect
from service.core.settings import load
from service.embedded import running

ACTOR: Final = "cli"
COLUMNS: Final = (
    *("prefix", "name", "tenant", "scopes", "rate", "max_open", "state", "created_at", "expires_at", "last_used_at"),
)
MAX_OPEN: Final = 100_000
NONE: Final = "none"
TENANT: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
UNITS: Final = {"h": "hours", "d": "days", "w": "weeks"}
CREATE: Final = """\b
Example:
  export CALLBOARD_API_KEY=$(callboard keys create \\
    --name mail-importer --scope ingest --expires 90d)
"""


@click.group(no_args_is_help=True)
def keys() -> None:
    """Who may come in, for which tenant, and what for. Needs the database: DATABASE_URL, or that of `callboard up`."""


def lasting(_: click.Context, __: click.Parameter, text: str | None) -> timedelta | None:
    if text is None:
        return None
    match = re.fullmatch(r"([1-9][0-9]{0,3})([hdw])", text)
    if match is None:
        raise click.BadParameter("a number with h, d or w behind it: 12h, 90d, 52w")
    return timedelta(**{UNITS[match[2]]: int(match[1])})


def tenant_name(_: click.Context, __: click.Parameter, text: str) -> str:
    if not TENANT.fullmatch(text):
        raise click.BadParameter("lower-case letters, digits, dots, dashes and underscores, 63 at most")
    return text


def rate_text(_: click.Context, __: click.Parameter, text: str | None) -> str | None:
    """The rate as its column has it; NONE is an empty text."""
    if text is None or text == NONE:
        return None if text is None else ""
    try:
        return str(read_rate(text))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def open_events(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """The number as its column has it; NONE is 0."""
    if text is None or text == NONE:
        return None if text is None else 0
    if not re.fullmatch(r"[1-9][0-9]{0,5}", text) or int(text) > MAX_OPEN:
        raise click.BadParameter(f"a number from 1 to {MAX_OPEN}")
    return int(text)


def quotas(command: Callable[..., None]) -> Callable[..., None]:
    """The options that bound what a key may send."""
    rate = click.option(
        "--rate", callback=rate_text, help="So many events in a second, minute or hour: 100/s, 100/min, 100/h; or none."
    )
    most = click.option("--max-open", callback=open_events, help="So many events that have not ended; or none.")
    return rate(most(command))


@keys.command(epilog=CREATE)
@click.option("--name", default="", help="What it is for, so that you know it again.")
@click.option("--tenant", default="default", show_default=True, callback=tenant_name, help="Whose events it sees.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(get_args(Scope)),
    default=("ingest", "read"),
    show_default=True,
    help="What it may do; may be given more than once. admin is everything.",
)
@click.option("--expires", callback=lasting, help="After 12h, 90d or 52w; never, where not given.")
@quotas
def create(
    name: str,
    tenant: str,
    scopes: tuple[str, ...],
    expires: timedelta | None,
    rate: str | None,
    max_open: int | None,
) -> None:
    """Make a key and print it, this once, alone on stdout. From the first one on, every request needs one.

    \b
    ingest    send events
    documents put and delete what searches find
    read      see events, dead letters, actors and the page
    operate   replay, cancel, discard
    """
    key = mint(KEY)
    parts, chosen = presented(key), sorted(set(scopes))

    values = (parts.prefix, tenant, name[:200], parts.hash, chosen, expires, ACTOR)
    ((until,),) = _ask(SQL["create"], *values, rate or None, max_open or None)
    click.echo(
        f"{parts.prefix} may {', '.join(chosen)} for tenant {tenant}; "
        f"it {f'expires on {until:%Y-%m-%d %H:%M} UTC' if until else 'never expires'}. "
        "The key, which is shown this once and kept nowhere:",
        err=True,
    )
    click.echo(key)


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """All keys, the oldest first, by their prefix; the keys themselves are kept nowhere."""
    rows = _ask(SQL["keys"])
    if as_json:
        print_json([dict(row) for row in rows])
    else:
        print_rows(COLUMNS, [tuple(_shown(row[column]) for column in COLUMNS) for row in rows])


@keys.command(epilog="Example: callboard keys limit cb_x4f7Qa2k --rate 100/s --max-open none")
@click.argument("prefix")
@quotas
def limit(prefix: str, rate: str | None, max_open: int | None) -> None:
    """Change what the key with this PREFIX may send, within 2 seconds. A limit without an option stays as it is."""
    if rate is None and max_open is None:
        raise click.UsageError("say what it may send: --rate, --max-open or both; none takes a limit away")
    short = prefix[:PREFIX_CHARS]
    if not (rows := _ask(SQL["limit"], short, rate, max_open, ACTOR)):
        raise NotFound(f"no key {short} that is not revoked yet: `callboard keys list` shows them")
    click.echo(f"{short} has the limits rate {rows[0]['rate'] or NONE}, max-open {rows[0]['max_open'] or NONE}")


@keys.command(epilog="Example: callboard keys revoke cb_x4f7Qa2k")
@click.argument("prefix")
def revoke(prefix: str) -> None:
    """End the key with this PREFIX, and the sessions signed in with it, within 2 seconds. It stays in the list."""
    short = prefix[:PREFIX_CHARS]
    if not _ask(SQL["revoke"], short, ACTOR):
        raise NotFound(f"no key {short} that is not revoked yet: `callboard keys list` shows them")
    click.echo(f"{short} is revoked")


@keys.command("sign-out", epilog="Example: callboard keys sign-out cb_x4f7Qa2k")
@click.argument("prefix")
def sign_out(prefix: str) -> None:
    """End all sessions that were signed in with the key of this PREFIX, within 2 seconds. The key itself goes on."""
    short = prefix[:PREFIX_CHARS]
    if not (rows := _ask(SQL["end_sessions"], short, ACTOR)):
        raise NotFound(f"no key {short}: `callboard keys list` shows them")
    click.echo(f"{rows[0]['count']} sessions of {short} are ended")


def _ask(statement: str, *arguments: Any) -> list[asyncpg.Record]:
    """Raises StartError with one sentence where there is no database, or none with the schema."""
    settings = load(os.environ)

    async def rows() -> list[asyncpg.Record]:
        connection = await connect(settings if settings.database_url else running(settings), "keys")
        try:
            return await connection.fetch(statement, *arguments)
        finally:
            await connection.close()

    try:
        return asyncio.run(rows())
    except POSTGRES_ERRORS as error:
        raise StartError(f"Postgres can't do this: {error}. Has `callboard migrate` run?") from error


def _shown(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    return ", ".join(value) if isinstance(value, list) else str(value or "")
