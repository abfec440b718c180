"""`callboard api | worker | migrate`: the parts alone."""

import asyncio
import os
import sys

import click

from service.embedded import running
from service.log import setup
from service.settings import load


@click.command()
def api() -> None:
    """Run the HTTP service alone, at CALLBOARD_HOST and CALLBOARD_PORT. Ends on SIGTERM.

    \b
    Postgres and Redis: DATABASE_URL and REDIS_URL, or those of a running `callboard up`.
    The same as:  python -m service
    """
    os.execv(sys.executable, [sys.executable, "-m", "service"])  # noqa: S606


@click.command()
def worker() -> None:
    """Run one worker alone. Ends on SIGTERM, when what it has in hand is finished or handed back.

    \b
    Postgres and Redis: DATABASE_URL and REDIS_URL, or those of a running `callboard up`.
    The same as:  python -m workers
    """
    os.execv(sys.executable, [sys.executable, "-m", "workers"])  # noqa: S606


@click.command()
def migrate() -> None:
    """Bring the database schema up to date; safe to repeat, and by several at once.

    \b
    Example:  DATABASE_URL=postgresql://… callboard migrate
    """
    from service.migrate import migrate as run

    setup()
    settings = load(os.environ)
    done = asyncio.run(run(settings if settings.database_url else running(settings)))
    for name in done:
        click.echo(f"ran {name}")
    click.echo("the schema is up to date")
