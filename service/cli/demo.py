"""`callboard demo`: a file of messages through the support triage, counted and timed."""

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import msgspec
from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from service.cli import corpus
from service.cli.api_client import NoService, open_client, request, settings_for
from service.cli.corpus import Split
from service.cli.feed import Fed, Feed
from service.cli.show import print_rows
from service.settings import LOOPBACK, Settings

# What a short call of a small model costs, give or take, and the most calls a ticket makes.
TYPICAL_CALL_USD = 0.002
CALLS_PER_TICKET = 4

EPILOG = """\b
Examples:
  callboard demo
  callboard demo messages.csv      (columns text and category)
"""


class Triaged(Struct, frozen=True):
    """What is read of a ticket's result."""

    intent: str | None = None
    simulated: list[str] = []


class Report(Struct, frozen=True):
    sent: int
    done: int
    dead: int
    known: int
    right: int
    simulated: int
    calls: int
    cost_usd: float
    p50_ms: float
    p99_ms: float

    @property
    def last_line(self) -> str:
        return (
            f"done={self.done} dead={self.dead} calls={self.calls} cost_usd={self.cost_usd:.6f} "
            f"p50_ms={self.p50_ms:.0f} p99_ms={self.p99_ms:.0f}"
        )


@click.command(epilog=EPILOG, short_help="Send a file of messages through it and show how they fared.")
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
        raise click.UsageError(price_sentence(len(plan.asked)))
    fed = asyncio.run(_run(settings, plan, may_start=url is None))
    report = tally(fed, [message.label for _, message in plan.asked])
    print_rows(("what", "how many"), list(_rows(report)))
    for event_id in fed.dead_ids:
        click.echo(f"dead: callboard show {event_id}")
    click.echo(report.last_line)
    sys.exit(0 if report.done == report.sent else 1)


def price_sentence(tickets: int) -> str:
    calls = tickets * CALLS_PER_TICKET
    return (
        f"A provider's key is set, so this costs money: about ${calls * TYPICAL_CALL_USD:,.2f}, an estimate for "
        f"{tickets:,} tickets with up to {CALLS_PER_TICKET} calls each at ${TYPICAL_CALL_USD:g} a call. "
        "Set PAY=1 to go on, or CALLBOARD_SIMULATE=on to do without the provider."
    )


def tally(fed: Fed, labels: list[str | None]) -> Report:
    results = [_triaged(view.result) for view in fed.tickets]
    known = [(result.intent, label) for result, label in zip(results, labels, strict=True) if label is not None]
    took_ms = sorted(view.took_ms for view in fed.tickets if view.took_ms is not None)
    return Report(
        sent=sum(fed.statuses.values()),
        done=fed.statuses["succeeded"],
        dead=fed.statuses["dead"],
        known=len(known),
        right=sum(intent == label for intent, label in known),
        simulated=sum(bool(result.simulated) for result in results),
        calls=sum(view.calls for view in fed.tickets),
        cost_usd=sum(view.cost_usd for view in fed.tickets),
        p50_ms=percentile(took_ms, 0.50),
        p99_ms=percentile(took_ms, 0.99),
    )


def percentile(ordered: list[float], share: float) -> float:
    """The smallest value that at least `share` of all values don't exceed; 0.0 where there are none."""
    return ordered[max(ceil(share * len(ordered)), 1) - 1] if ordered else 0.0


def _triaged(result: Any) -> Triaged:
    try:
        return msgspec.convert(result, Triaged)
    except msgspec.ValidationError:
        return Triaged()


def _rows(report: Report) -> Iterator[tuple[str, str]]:
    yield "done", f"{report.done:,} of {report.sent:,}"
    yield "dead", f"{report.dead:,}"
    if report.known:
        yield "intent right", f"{report.right:,} of {report.known:,} ({100 * report.right / report.known:.1f} %)"
    yield "latency of a ticket, p50", f"{report.p50_ms:,.0f} ms"
    yield "latency of a ticket, p99", f"{report.p99_ms:,.0f} ms"
    yield "calls of models", f"{report.calls:,}"
    yield "cost", f"${report.cost_usd:,.4f}"
    if report.simulated:
        yield "tickets with simulated parts", f"{report.simulated:,}"


async def _run(settings: Settings, plan: Split, *, may_start: bool) -> Fed:
    source = f"/demo/{uuid.uuid4()}"
    examples, tickets = len(plan.taught), len(plan.asked)
    async with _service(settings, may_start=may_start) as live, open_client(live) as client:
        click.echo(f"{live.url}, source {source}: {examples:,} examples, {tickets:,} tickets", err=True)
        with _progress() as progress:
            sent_bar = progress.add_task("sent", total=examples + tickets)
            ended_bar = progress.add_task("ended", total=examples + tickets)

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
    if await _answers(settings, else_raise=not may_start or urlsplit(settings.url).hostname not in LOOPBACK):
        yield settings
        return
    from service.cli.up import running  # here, since it pulls in the servers

    async with running(settings) as live:
        yield live


async def _answers(settings: Settings, *, else_raise: bool) -> bool:
    try:
        async with open_client(settings) as client:
            await request(client, "GET", "/healthz")
    except NoService:
        if else_raise:
            raise
        return False
    return True
