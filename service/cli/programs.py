"""`callboard api | worker | migrate | simulator`: the parts alone."""

import asyncio
import os
import sys

import click
from msgspec import json

from service.core.log import setup
from service.core.settings import load
from service.embedded import running


@click.command()
def api() -> None:
    """Run the HTTP service alone, at CALLBOARD_HOST and CALLBOARD_PORT. Ends on SIGTERM.

    Postgres and Redis: DATABASE_URL and REDIS_URL, or those of a running `callboard up`.
    The same as `python -m service`.
    """
    _become("service")


@click.command()
def worker() -> None:
    """Run one worker alone. Ends on SIGTERM, when what it has in hand is finished or handed back.

    Postgres and Redis: DATABASE_URL and REDIS_URL, or those of a running `callboard up`.
    The same as `python -m workers`.
    """
    _become("workers")


@click.command()
@click.option(
    "--dry-run", is_flag=True, help="Only list what it would run, a name a line; `stop` behind one that needs a stop."
)
@click.option("--adopt-redis", is_flag=True, help="Then take over the Redis of REDIS_URL from another database.")
def migrate(dry_run: bool, adopt_redis: bool) -> None:
    """Bring the database schema up to date; safe to repeat, and by several at once.

    \b
    Example:  DATABASE_URL=postgresql://… callboard migrate
    """
    from service.core.migrate import migrate as run
    from service.core.migrate import must_stop, outstanding
    from service.core.redis_owner import adopt

    setup()
    settings = load(os.environ)
    done = asyncio.run((outstanding if dry_run else run)(settings if settings.database_url else running(settings)))
    for name in done:
        click.echo(f"ran {name}" if not dry_run else f"{name} stop" if must_stop(name) else name)
    if not dry_run:
        click.echo("the schema is up to date")
    if adopt_redis and not dry_run:
        before, now = asyncio.run(adopt(running(settings)))
        former = "as before" if before == now else f"and did to {before or 'nobody'}"
        click.echo(f"Redis belongs to {now}, {former}")


@click.command()
@click.option("--port", default=8001, show_default=True, help="0 takes a free one; always on 127.0.0.1.")
@click.option("--seed", default=0, show_default=True, help="Another seed, other replies.")
@click.option("--latency-ms", default=20.0, show_default=True, help="Median of a reply, lognormal.")
@click.option("--latency-p99-ms", type=float, help="The same as the median: always as long. Default: 2.5 times that.")
@click.option("--first-token-ms", type=float, help="Median of a stream's first token. Default: as of a reply.")
@click.option("--token-ms", default=0.0, show_default=True, help="From token to token of a stream.")
@click.option(
    "--limit", multiple=True, help="requests=60,tokens=10000,concurrent=5,model=NAME: any of these, per minute."
)
@click.option("--fault", multiple=True, envvar="SIMULATOR_FAULTS", help="As above; may be given more than once.")
@click.option("--log-file", default="", help="A file that gets a JSON line for every call.")
def simulator(port: int, limit: tuple[str, ...], fault: tuple[str, ...], **behaviour: float | str | None) -> None:
    """Run the model simulator alone: OpenAI's, Azure's and Anthropic's protocols, for any SDK. Ends on SIGTERM.

    \b
    Examples:
      callboard simulator --fault 529,share=0.3 \\
        --fault hang,model=gpt-6-luna,times=5
      curl 127.0.0.1:8001/faults -d '{"kind": "down", "for_s": 60}'
      curl 127.0.0.1:8001/calls

    \b
    A fault is an HTTP status or one of: quota refusal length invalid malformed
    html empty truncated cut error_event stall drip hang reset down; then, as
    wanted, with commas:
      model=NAME  share=0.3  times=5  for_s=60  wait_s=1 (drip)
      retry_after=3600 (a status; any text)

    One call alone: the header `x-callboard-fault` with the same words. DELETE /faults ends them all.
    """
    options = {"port": port, "behaviour": behaviour, "limits": limit, "faults": fault}
    _become("workers.simulator", json.encode(options).decode())


def _become(module: str, *arguments: str) -> None:
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606
