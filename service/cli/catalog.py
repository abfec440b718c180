"""`callboard pipelines | prompts`: what there is to run, what models are told, and what came of it."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click
import msgspec

from service.cli.api_client import as_json, ask, at_service, printable
from service.cli.show import print_json
from service.cli.table import print_rows
from service.cli.times import AT
from service.core.settings import Settings

COLUMNS: Final = ("prompt", "calls", "ok", "invalid", "unknown", "failed", "tokens in", "out", "$", "p50 ms", "p95 ms")
KINDS: Final = {"node": "", "router": "?", "each": " × each", "free": " (free form: it decides as it runs)"}


@click.command(epilog="Example: callboard pipelines support")
@click.argument("name", required=False)
@as_json
@at_service
def pipelines(name: str | None, as_json: bool, settings: Settings) -> None:
    """The event types and the pipeline of each; with NAME, the graph of that pipeline.

    \b
    a → b                b after a
    a → b, c             side by side; what follows waits for both
    a? → high: b         a router: the branch of the label it gives runs
    """
    answer = ask(settings, "GET", f"/pipelines/{quote(name, safe='')}" if name else "/types")
    if as_json:
        print_json(answer)
    elif name:
        click.echo(printable(f"{answer['name']} on {answer['type']}, version {answer['version']}\n"))
        for line in drawn(answer["nodes"], answer["edges"]):
            click.echo(printable(line))
    else:
        rows = [(item["pipeline"] or "", item["type"]) for item in answer["items"]]
        print_rows(("pipeline", "type"), sorted(rows))


def drawn(nodes: list[Mapping[str, Any]], edges: list[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each node, with those that come right behind it."""
    names = {node["name"]: node["name"].rpartition("/")[2] + KINDS.get(node["kind"], "") for node in nodes}
    for name, text in names.items():
        ways = [(edge["label"], names[edge["to"]]) for edge in edges if edge["from"] == name]
        behind = ", ".join(to if label is None else f"{label}: {to}" for label, to in ways)
        yield f"{text} → {behind}" if behind else text


@click.group(no_args_is_help=True, epilog="Example: callboard prompts stats --days 7")
def prompts() -> None:
    """What models are told, and what came of it."""


@prompts.command("list")
@as_json
@at_service
def list_(as_json: bool, settings: Settings) -> None:
    """Every prompt: its versions, and the models that its alias names in turn."""
    answer = ask(settings, "GET", "/prompts")
    if as_json:
        print_json(answer)
        return
    rows = [
        (item["name"], ", ".join(map(str, item["versions"])), item["model"], ", ".join(item["models"]))
        for item in answer["items"]
    ]
    print_rows(("prompt", "versions", "model", "asked in turn"), rows)


@prompts.command()
@click.argument("name")
@as_json
@at_service
def show(name: str, as_json: bool, settings: Settings) -> None:
    """The newest version of NAME, or NAME@VERSION: head, text, and since when it is in use."""
    answer = ask(settings, "GET", f"/prompts/{quote(name)}")
    if as_json:
        print_json(answer)
        return
    used = f"used since {answer['first_used'][:10]}" if answer["first_used"] else "not used yet"
    click.echo(f"{answer['name']}@{answer['version']}, {used}, {', '.join(answer['models'])}\n")
    click.echo(printable(answer["text"]))


@prompts.command(epilog="Example: callboard prompts render tickets/classify --var ticket=@ticket.json")
@click.argument("name")
@click.option("--var", "variables", multiple=True, metavar="NAME=VALUE", help="JSON, @FILE with JSON, or else a text.")
@as_json
@at_service
def render(name: str, variables: tuple[str, ...], as_json: bool, settings: Settings) -> None:
    """What a model would be told by NAME or NAME@VERSION. Nothing is asked."""
    body = msgspec.json.encode({"variables": dict(_variable(variable) for variable in variables)})
    answer = ask(settings, "POST", f"/prompts/{quote(name)}/render", content=body)
    if as_json:
        print_json(answer)
        return
    for part in ("system", "user"):
        if answer[part] is not None:
            click.echo(f"--- {part} ---\n{printable(answer[part])}")


@prompts.command()
@click.argument("name", required=False)
@click.option("--days", default=1, show_default=True, type=click.IntRange(1, 31), help="From how long ago.")
@click.option("--since", type=AT, help="From then on, in the place of --days: 2026-11-22T10:00:00Z, or 1h.")
@as_json
@at_service
def stats(name: str | None, days: int, since: str | None, as_json: bool, settings: Settings) -> None:
    """Calls, outcomes, tokens, cost and times of each version; `(embed)` are embeddings.

    \b
    invalid   the reply was not of the type asked for
    unknown   cut off or timed out: nobody can say whether it is billed
    failed    surely not billed, refused, or cut off at max_tokens
    """
    begin = since or (datetime.now(UTC) - timedelta(days=days)).isoformat()
    query = {"since": begin, **({"name": name} if name else {})}
    answer = ask(settings, "GET", "/prompt-stats", params=query)
    if as_json:
        print_json(answer)
    else:
        print_rows(COLUMNS, [_counted(item) for item in answer["items"]])


def _counted(item: Mapping[str, Any]) -> list[str]:
    counts = [str(item[field]) for field in ("calls", "ok", "invalid", "unknown", "failed", "tokens_in", "tokens_out")]
    times = ["" if item[field] is None else f"{item[field]:.0f}" for field in ("p50_ms", "p95_ms")]
    return [f"{item['name']}@{item['version']}", *counts, f"{item['cost_usd']:.6f}", *times]


def _variable(text: str) -> tuple[str, Any]:
    name, mark, value = text.partition("=")
    if not mark:
        raise click.UsageError(f"--var {text}: write NAME=VALUE.")
    try:
        return name, msgspec.json.decode(Path(value[1:]).read_bytes() if value.startswith("@") else value)
    except (OSError, msgspec.DecodeError) as error:
        if not value.startswith("@"):
            return name, value
        raise click.UsageError(f"--var {text}: {error}") from error
