"""`callboard prompts`: which there are, what they say, and how each version fared."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click
import msgspec

from service.cli.api_client import printable
from service.cli.operate import JSON, ask
from service.cli.show import print_rows

COLUMNS: Final = ("prompt", "calls", "ok", "invalid", "unknown", "failed", "tokens in", "out", "$", "p50 ms", "p95 ms")


@click.group(
    no_args_is_help=True,
    epilog="Example: callboard prompts stats --days 7",
    short_help="List, show and render prompts; count their calls.",
)
def prompts() -> None:
    """What models are told, and what came of it."""


def answered(command: Any) -> Any:
    """The options of every reading command."""
    as_json = click.option("--json", "as_json", is_flag=True, help="Print the API's answer as JSON.")
    return as_json(click.option("--url", help="The service's address; default CALLBOARD_URL.")(command))


@prompts.command("list")
@answered
def list_(as_json: bool, url: str | None) -> None:
    """Every prompt: its versions, and the models that its alias names in turn."""
    told = ask(url, "GET", "/prompts")
    if not _printed(told, as_json):
        rows = [_listed(each) for each in told["items"]]
        print_rows(("prompt", "versions", "model", "asked in turn"), rows)


@prompts.command()
@click.argument("name")
@answered
def show(name: str, as_json: bool, url: str | None) -> None:
    """The newest version of NAME, or NAME@VERSION: head, text, and since when it is in use."""
    told = ask(url, "GET", f"/prompts/{quote(name)}")
    if not _printed(told, as_json):
        used = f"used since {told['first_used'][:10]}" if told["first_used"] else "not used yet"
        click.echo(f"{told['name']}@{told['version']}, {used}, {', '.join(told['models'])}\n")
        click.echo(printable(told["text"]))


@prompts.command(epilog="Example: callboard prompts render tickets/classify --var ticket=@ticket.json")
@click.argument("name")
@click.option("--var", "variables", multiple=True, metavar="NAME=VALUE", help="JSON, @FILE with JSON, or else a text.")
@answered
def render(name: str, variables: tuple[str, ...], as_json: bool, url: str | None) -> None:
    """What a model would be told by NAME or NAME@VERSION. Nothing is asked."""
    body = msgspec.json.encode({"variables": dict(_variable(each) for each in variables)})
    told = ask(url, "POST", f"/prompts/{quote(name)}/render", content=body, headers=JSON)
    if not _printed(told, as_json):
        for part in ("system", "user"):
            if told[part] is not None:
                click.echo(f"--- {part} ---\n{printable(told[part])}")


@prompts.command()
@click.argument("name", required=False)
@click.option("--days", default=1, show_default=True, type=click.IntRange(1, 31), help="From how long ago.")
@answered
def stats(name: str | None, days: int, as_json: bool, url: str | None) -> None:
    """Calls, outcomes, tokens, cost and times of each version; `(embed)` are embeddings.

    \b
    invalid   the reply was not of the type asked for
    unknown   cut off or timed out: nobody can say whether it is billed
    failed    surely not billed, refused, or cut off at max_tokens
    """
    asked = {"since": (datetime.now(UTC) - timedelta(days=days)).isoformat(), **({"name": name} if name else {})}
    told = ask(url, "GET", "/prompt-stats", params=asked)
    if not _printed(told, as_json):
        print_rows(COLUMNS, [_counted(each) for each in told["items"]])


def _printed(told: Any, as_json: bool) -> bool:
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(told), indent=2))
    return as_json


def _listed(item: dict[str, Any]) -> list[str]:
    return [item["name"], ", ".join(map(str, item["versions"])), item["model"], ", ".join(item["models"])]


def _counted(item: dict[str, Any]) -> list[str]:
    counts = [str(item[each]) for each in ("calls", "ok", "invalid", "unknown", "failed", "tokens_in", "tokens_out")]
    times = ["" if item[each] is None else f"{item[each]:.0f}" for each in ("p50_ms", "p95_ms")]
    return [f"{item['name']}@{item['version']}", *counts, f"{item['cost_usd']:.6f}", *times]


def _variable(given: str) -> tuple[str, Any]:
    name, found, value = given.partition("=")
    if not found:
        raise click.UsageError(f"--var {given}: write NAME=VALUE.")
    if value.startswith("@"):
        try:
            return name, msgspec.json.decode(Path(value[1:]).read_bytes())
        except (OSError, msgspec.DecodeError) as error:
            raise click.UsageError(f"--var {given}: {error}") from error
    try:
        return name, msgspec.json.decode(value)
    except msgspec.DecodeError:
        return name, value
