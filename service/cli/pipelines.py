"""`callboard pipelines`: which there are, and the graph of one as text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import click
import msgspec
from msgspec import Struct

from service.cli.api_client import printable
from service.cli.operate import ask
from service.cli.show import print_rows

BEGIN: Final = "(begin)"
END: Final = "(end)"
KINDS: Final = {"node": "", "router": "?", "each": " × each", "free": " (free form: it decides as it runs)"}

Way = tuple[str, str | None]
Ways = Mapping[str, Sequence[Way]]


@click.command(epilog="Example: callboard pipelines support", short_help="List the pipelines, or draw one.")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer as JSON.")
@click.option("--url", help="The service's address; default CALLBOARD_URL.")
def pipelines(name: str | None, as_json: bool, url: str | None) -> None:
    """The event types and the pipeline of each; with NAME, the graph of that pipeline, top to bottom.

    \b
    a → b                b after a
    ├ a                  side by side; what follows waits for all of them
    └ b
    a?                   a router: the branch of the label it gives runs
    └ high: b
    """
    told = ask(url, "GET", f"/pipelines/{quote(name, safe='')}" if name else "/types")
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(told), indent=2))
    elif name:
        click.echo(printable(f"{told['name']} on {told['type']}, version {told['version']}\n"))
        for line in draw(told["nodes"], told["edges"]):
            click.echo(printable(line))
    else:
        rows = [(each["pipeline"] or "", each["type"]) for each in told["items"]]
        print_rows(("pipeline", "type"), sorted(rows))


class Graph(Struct, frozen=True):
    """`after[n]` is where the ways from `n` lead, each with its label; `through[n]` what all of them come through."""

    texts: Mapping[str, str]
    after: Ways
    through: Mapping[str, Sequence[str]]

    def meet(self, name: str) -> str:
        """Where all ways from there meet again."""
        return self.through[name][1]


def draw(nodes: Sequence[Mapping[str, Any]], edges: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of text: a sequence goes down, or along with arrows where nothing forks; a fork is a tree."""
    texts = {each["name"]: each["name"].rpartition("/")[2] + KINDS.get(each["kind"], "") for each in nodes}
    after = _joined(list(texts), edges)
    return list(_lines(Graph(texts, after, _through(after)), BEGIN, END))


def _joined(names: Sequence[str], edges: Sequence[Mapping[str, Any]]) -> Ways:
    """The edges; ways that lead to the same nodes, and those with a label, go through a place in between."""
    before: dict[str, list[Way]] = {name: [] for name in names}
    for each in edges:
        before[each["to"]].append((each["from"], each["label"]))
    after: dict[str, list[Way]] = {BEGIN: [], **{name: [] for name in names}}
    places: dict[tuple[Way, ...], str] = {}
    for name, ways in before.items():
        group = tuple(ways) or ((BEGIN, None),)
        if len(group) == 1 and group[0][1] is None:
            after[group[0][0]].append((name, None))
            continue
        if group not in places:
            places[group] = f"({len(places)})"
            after[places[group]] = []
            for begin, label in group:
                after[begin].append((places[group], label))
        after[places[group]].append((name, None))
    return {name: ways or [(END, None)] for name, ways in after.items()} | {END: []}


def _through(after: Ways) -> dict[str, list[str]]:
    """For each place those that every way from it comes through, in order, itself first."""
    through: dict[str, list[str]] = {END: [END]}

    def follow(name: str) -> list[str]:
        if name not in through:
            first, *others = [follow(to) for to, _ in after[name]]
            through[name] = [name, *(each for each in first if all(each in other for other in others))]
        return through[name]

    return {name: follow(name) for name in after}


def _lines(graph: Graph, begin: str, end: str) -> Iterator[str]:
    """From `begin` to `end`, which is not drawn."""
    at, label = begin, None
    chain: list[str] = []
    while at != end:
        if at in graph.texts:
            chain.append(f"{label}: {graph.texts[at]}" if label else graph.texts[at])
            label = None
        ways = graph.after[at]
        if len(ways) == 1:
            label = label or ways[0][1]
        else:
            yield from _chain(chain)
            chain = []
            yield from _fork(graph, ways, graph.meet(at))
        at = graph.meet(at)
    yield from _chain(chain)


def _fork(graph: Graph, ways: Sequence[Way], end: str) -> Iterator[str]:
    """A branch for each way to `end`; ways that meet before it are one branch, which forks again."""
    branches: list[list[Way]] = []
    for way in ways:
        others = (each for each in branches if _meeting(graph, [each[0], way]) != end)
        branches.append([way]) if (shared := next(others, None)) is None else shared.append(way)
    for branch in branches:
        (to, label), last = branch[0], branch is branches[-1]
        if len(branch) == 1:
            yield from _branch(list(_lines(graph, to, end)), label, last=last)
        else:
            middle = _meeting(graph, branch)
            lines = [*_fork(graph, branch, middle), *_lines(graph, middle, end)]
            yield from _branch(lines, None, last=last)


def _meeting(graph: Graph, ways: Sequence[Way]) -> str:
    """The first place that all of them come through."""
    first, *others = [graph.through[to] for to, _ in ways]
    return next(each for each in first if all(each in other for other in others))


def _chain(texts: Sequence[str]) -> Iterator[str]:
    if texts:
        yield " → ".join(texts)


def _branch(lines: Sequence[str], label: str | None, *, last: bool) -> Iterator[str]:
    of = f"{label}: " if label is not None else ""
    first, *others = lines or ["-"]
    yield f"{'└' if last else '├'} {of}{first}"
    for line in others:
        yield f"{' ' if last else '│'} {' ' * len(of)}{line}"
