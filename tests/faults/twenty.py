"""A pipeline of twenty nodes, fourteen of which ask a model: a route that holds a parallel that holds a parallel."""

from typing import Final

ASKS: Final = {
    "outline": ("event",),
    "facts": ("outline",),
    "tone": ("outline", "facts"),
    "sources": ("event",),
    "weigh": ("facts", "tone", "sources", "length"),
    "part_a": ("weigh",),
    "part_b": ("weigh", "outline"),
    "part_c": ("weigh",),
    "check_a": ("part_a", "part_b"),
    "check_b": ("joined",),
    "mended": ("joined", "check_a", "check_b"),
    "title": ("event", "outline"),
    "blurb": ("title",),
    "tags": ("title", "weigh"),
}
CHEAP: Final = ("length", "by_size", "joined", "indexed", "sealed", "finished")

EVENT: Final = '''
"""A long piece of work."""

from schemas import Event


class Twenty(Event, tag="twenty", frozen=True):
    text: str
'''

PROMPT: Final = """+++
model = "fast"
max_tokens = 100
variables = ["mark", "given"]
+++
<<{{ mark }}>> {{ given }}
"""

HEAD: Final = '''
"""Twenty nodes."""

from typing import Literal

from msgspec import Struct

from schemas.events.twenty import Twenty
from workers.kit import Run


class Length(Struct, frozen=True):
    n: int


async def length(event: Twenty) -> Length:
    return Length(len(event.text))


async def by_size(length: Length) -> Literal["long", "short"]:
    return "long" if length.n > 10 else "short"


async def short() -> None: ...

'''

ASK: Final = """
class {type}(Struct, frozen=True):
    n: int


async def {name}(run: Run, {parameters}) -> {type}:
    mark = f"{{run.event_id}}/{{run._deps.claim}}/{name}"
    run.vectors.upsert("twenty", f"{{run.event_id}}/{name}", "{name}")
    return await run.llm.ask("twenty/ask", returns={type}, mark=mark, given=["{name}", {given}])

"""

JOINED: Final = """
class Joined(Struct, frozen=True):
    ns: list[int]


async def joined(a: PartA, b: PartB, c: PartC) -> Joined:
    return Joined([a.n, b.n, c.n])

"""

TAIL: Final = """
class Indexed(Struct, frozen=True):
    n: int


async def indexed(run: Run, title: Title) -> Indexed:
    run.vectors.upsert("twenty", f"{run.event_id}/indexed", "title")
    return Indexed(title.n)


class Sealed(Struct, frozen=True):
    ns: list[int]


async def sealed(indexed: Indexed, blurb: Blurb, tags: Tags, title: Title) -> Sealed:
    return Sealed([indexed.n, blurb.n, tags.n, title.n])


async def finished(sealed: Sealed, weigh: Weigh, outline: Outline, facts: Facts) -> list[int]:
    return [*sealed.ns, weigh.n, outline.n, facts.n]
"""

PIPELINE: Final = '''
"""Twenty nodes."""

from schemas.events.twenty import Twenty
from workers.kit import Pipeline, Retry, parallel, route
from workers.nodes import twenty as n

twenty = Pipeline(
    on=Twenty,
    flow=[
        n.outline,
        parallel([n.facts, n.tone], n.length, n.sources),
        n.weigh,
        route(
            n.by_size,
            {
                "long": [
                    parallel([parallel(n.part_a, n.part_b), n.check_a], n.part_c),
                    n.joined,
                    n.check_b,
                    n.mended,
                ],
                "short": [n.short],
            },
        ),
        n.title,
        parallel(n.indexed, n.blurb, n.tags),
        n.sealed,
        n.finished,
    ],
    retry=Retry(attempts=3),
    timeout_s=3600,
)
'''


def _ask(name: str) -> str:
    """A node that asks; its parameters are named as the nodes they come from."""
    takes = ASKS[name]
    parameters = ", ".join(f"{source}: {_type(source)}" for source in takes)
    return ASK.format(name=name, type=_type(name), parameters=parameters, given=", ".join(takes))


def _type(name: str) -> str:
    return "Twenty" if name == "event" else name.title().replace("_", "")


def _nodes() -> str:
    names = list(ASKS)
    before = "".join(map(_ask, names[: names.index("check_a")]))
    return HEAD + before + JOINED + "".join(map(_ask, names[names.index("check_a") :])) + TAIL


FILES: Final = {
    "schemas/events/twenty.py": EVENT,
    "workers/nodes/twenty.py": _nodes(),
    "workers/pipelines/twenty.py": PIPELINE,
    "prompts/twenty/ask/v1.md": PROMPT,
}
