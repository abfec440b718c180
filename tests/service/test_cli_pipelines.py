"""`callboard pipelines`: graphs as text, of every shape a flow can have."""

import asyncio
from typing import Any, Literal

import pytest
from click.testing import CliRunner, Result

from schemas import Event
from service.cli.pipelines import draw, pipelines
from tests.board import Board
from workers.kit import Pipeline, Run, each, parallel, pipeline, route
from workers.kit.drawing import edges
from workers.kit.wiring import compiled


class Asked(Event, tag="asked", frozen=True):
    pass


async def one(event: Asked) -> list[int]:
    return []


async def two(event: Asked) -> None: ...


async def three(event: Asked) -> None: ...


async def item(number: int) -> int:
    return number


async def way(event: Asked) -> Literal["left", "right"]:
    return "left"


async def again(event: Asked) -> Literal["up", "down"]:
    return "up"


@pipeline(on=Asked)
async def free(run: Run, event: Asked) -> None: ...


SHAPES: dict[str, tuple[Pipeline, str]] = {
    "nothing": (Pipeline(on=Asked, flow=[]), ""),
    "a sequence": (Pipeline(on=Asked, flow=[one, two, three]), "one → two → three"),
    "each": (Pipeline(on=Asked, flow=[one, each(item), two]), "one → item × each → two"),
    "free": (free, "free (free form: it decides as it runs)"),
    "side by side, twice": (
        Pipeline(on=Asked, flow=[parallel(one, two), parallel(two, three), one]),
        """
├ one
└ two
├ two#2
└ three
one#2
""",
    ),
    "a route with an empty branch": (
        Pipeline(on=Asked, flow=[one, route(way, {"left": [two, three], "right": []}), two]),
        """
one → way?
├ left: two → three
└ right: -
two
""",
    ),
    "forks in forks": (
        Pipeline(
            on=Asked,
            flow=[
                route(
                    way,
                    {
                        "left": [parallel(one, two), three],
                        "right": [one, route(again, {"up": [two], "down": [three]})],
                    },
                ),
                parallel(one, two),
            ],
        ),
        """
way?
├ left: ├ one
│       └ two
│       three
└ right: one → again?
         ├ up: two
         └ down: three
├ one
└ two
""",
    ),
    "one branch, and an end": (
        Pipeline(on=Asked, flow=[one, route(way, {"left": [two, three], "right": []})]),
        "one → way? → left: two → three",
    ),
    "an end in a branch": (
        Pipeline(on=Asked, flow=[route(way, {"left": [one]}, otherwise=[two, three])]),
        """
way?
├ left: one
└ otherwise: two → three
""",
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_graph_is_readable(shape: str) -> None:
    declared, text = SHAPES[shape]
    nodes, arrows = edges(compiled(declared))
    told = draw(
        [{"name": name, "kind": kind} for name, kind in nodes],
        [{"from": begin, "to": end, "label": label} for begin, end, label in arrows],
    )
    assert "\n".join(told) == text.strip("\n")


def test_a_sequence_side_by_side_with_others_is_drawn_once() -> None:
    """`parallel([parallel(a, b), c], d)`, then e: as the API tells it."""
    names = [{"name": name, "kind": "node"} for name in "abcdef"]
    arrows = ["ac", "bc", "ce", "de", "ef"]
    told = draw(names, [{"from": each[0], "to": each[1], "label": None} for each in arrows])
    assert "\n".join(told) == "├ ├ a\n│ └ b\n│ c\n└ d\ne → f"


async def call(board: Board, *arguments: str) -> Result:
    line: Any = [*arguments, "--url", str(board.http.base_url)]
    return await asyncio.to_thread(CliRunner().invoke, pipelines, line)


async def test_a_running_callboard_is_drawn(board: Board) -> None:
    listed = (await call(board)).output.splitlines()
    assert listed[0] == "pipeline\ttype"
    assert "support\tticket.opened" in listed
    told = (await call(board, "support")).output
    assert told.startswith("support on ticket.opened, version ")
    assert "by_urgency?\n├ page: page_on_call\n├ answer: draft_reply → check_reply\n└ close: close\nremember\n" in told
    assert '"edges"' in (await call(board, "support", "--json")).output
    assert '"items"' in (await call(board, "--json")).output
    unknown = await call(board, "no such")
    assert (unknown.exit_code, unknown.output) == (1, "Error: Not Found: no pipeline no such\n")
