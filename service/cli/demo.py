"""`callboard demo`: a file of messages through the support triage, counted and timed."""

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from math import ceil
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from service.cli import corpus
from service.cli.api_client import EventView, NoService, open_client, request, settings_for
from service.cli.corpus import Split
from service.cli.feed import Fed, Feed
from service.cli.table import print_rows
from service.core.settings import LOOPBACK, Settings

# What a short call of a small model costs, give or take, and the most calls a ticket makes.
TYPICAL_CALL_USD: Final = 0.002
CALLS_PER_TICKET: Final = 4

EPILOG: Final = """\b
Examples:
  callboard demo
  callboard demo messages.csv      (columns text and category)
"""


@click.command(epilog=EPILOG)
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--url", help="The service's address; default CALLBOARD_URL, or one started for the purpose.")
@click.option("--pay", is_flag=True, envvar="PAY", help="Go on although a provider's key is set; PAY=1 does the same.")
def demo(file: Path | None, url: str | None, pay: bool) -> None:
    """Send the messages in FILE (CSV or JSON lines; default: 60 of our own) through the support triage.

    Where FILE has labels, nine tenths of it are stored as examples first; then every tenth message is asked about,
    and the intent found is compared with its label. Exits with 1 unless every message succeeded.
    """
    settings = settings_for(url)
    plan = corpus.split(corpus.read(file)) if file else Split([], list(enumerate(corpus.shipped("demo"))))
    if settings.has_provider_key and not settings.simulated and not pay:
        raise click.UsageError(price_sentence(len(plan.questions)))
    fed = asyncio.run(_run(settings, plan, may_start=url is None))
    print_rows(("what", "how many"), list(rows(fed, [message.label for _, message in plan.questions])))
    for event_id in fed.dead_ids:
        click.echo(f"dead: callboard show {event_id}")
    click.echo(last_line(fed))
    sys.exit(0 if fed.statuses["succeeded"] == fed.statuses.total() else 1)


def price_sentence(tickets: int) -> str:
    calls = tickets * CALLS_PER_TICKET
    return (
        f"A provider's key is set, so this costs money: about ${calls * TYPICAL_CALL_USD:,.2f}, an estimate for "
        f"{tickets:,} tickets with up to {CALLS_PER_TICKET} calls each at ${TYPICAL_CALL_USD:g} a call. "
        "Set PAY=1 to go on, or CALLBOARD_SIMULATE=on to do without the provider."
    )


def rows(fed: Fed, labels: list[str | None]) -> Iterator[tuple[str, str]]:
    """The table. `labels`: of the tickets, in their order."""
    yield "done", f"{fed.statuses['succeeded']:,} of {fed.statuses.total():,}"
    yield "dead", f"{fed.statuses['dead']:,}"
    results = [event.result if isinstance(event.result, dict) else {} for event in fed.tickets]
    known = [(result.get("intent"), label) for result, label in zip(results, labels, strict=True) if label is not None]
    if known:
        right = sum(intent == label for intent, label in known)
        yield "intent right", f"{right:,} of {len(known):,} ({100 * right / len(known):.1f} %)"
    for share in (50, 99):
        yield f"latency of a ticket, p{share}", f"{took_ms(fed.tickets, share / 100):,.0f} ms"
    yield "calls of models", f"{sum(event.calls for event in fed.tickets):,}"
    yield "cost", f"${sum(event.cost_usd for event in fed.tickets):,.4f}"
    if simulated := sum(bool(result.get("simulated")) for result in results):
        yield "tickets with simulated parts", f"{simulated:,}"


def last_line(fed: Fed) -> str:
    return (
        f"done={fed.statuses['succeeded']} dead={fed.statuses['dead']} calls={sum(view.calls for view in fed.tickets)} "
        f"cost_usd={sum(view.cost_usd for view in fed.tickets):.6f} "
        f"p50_ms={took_ms(fed.tickets, 0.50):.0f} p99_ms={took_ms(fed.tickets, 0.99):.0f}"
    )


def took_ms(tickets: list[EventView], share: float) -> float:
    """The smallest time that at least `share` of the tickets don't exceed; 0.0 where there are none."""
    ordered = sorted(event.took_ms for event in tickets if event.took_ms is not None)
    return ordered[max(ceil(share * len(ordered)), 1) - 1] if ordered else 0.0


async def _run(settings: Settings, plan: Split, *, may_start: bool) -> Fed:
    source, total = f"/demo/{uuid.uuid4()}", len(plan.examples) + len(plan.questions)
    async with _service(settings, may_start=may_start) as live, open_client(live) as client:
        click.echo(
            f"{live.url}, source {source}: {len(plan.examples):,} examples, {len(plan.questions):,} tickets", err=True
        )
        with _progress() as progress:
            sent_bar, ended_bar = (progress.add_task(name, total=total) for name in ("sent", "ended"))

            def watch(sent: int, ended: int) -> None:
                progress.update(sent_bar, completed=sent)
                progress.update(ended_bar, completed=ended)

            return await Feed(client, source, watch).run(plan)


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<6}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


@asynccontextmanager
async def _service(settings: Settings, *, may_start: bool) -> AsyncIterator[Settings]:
    """The Callboard that answers at settings.url; on this machine, where none does, one for the while."""
    try:
        async with open_client(settings) as client:
            await request(client, "GET", "/healthz")
    except NoService:
        if not may_start or urlsplit(settings.url).hostname not in LOOPBACK:
            raise
    else:
        yield settings
        return
    from service.cli.up import running  # here, since it pulls in the servers

    async with running(settings) as live:
        yield live
