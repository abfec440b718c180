"""Who may take a state is settled at boot; what may be kept, when it is set."""

from collections.abc import Callable
from types import new_class
from typing import Any

import pytest
from msgspec import Struct

from schemas import Event
from service.core.errors import Reject, WiringError
from tests.workers.kit.runs import open_run
from workers.compiler.binding import bind
from workers.compiler.plan import execute
from workers.compiler.reading import merge, states
from workers.compiler.wiring import compiled
from workers.kit import Pipeline, State, each, parallel, route
from workers.kit.state import STATE_MAX


class Said(Event, tag="said", frozen=True):
    text: str = ""


class Mood(Struct, frozen=True):
    words: list[str] = []


class Bare(Struct, frozen=True):
    words: list[str]


class Loose(Struct):
    words: list[str] = []


class Line(Struct, frozen=True):
    text: str


async def feel(event: Said, mood: State[Mood]) -> Line:
    mood.set(Mood([*mood.value.words, event.text]))
    return Line(event.text)


async def feel_too(event: Said, mood: State[Mood]) -> None: ...


async def lines(event: Said) -> list[Line]:
    return [Line("a")]


async def by_line(line: Line, mood: State[Mood]) -> str:
    return "x"


async def per_line(line: Line, mood: State[Mood]) -> None: ...


def refusal(flow: Any) -> str:
    with pytest.raises(WiringError) as refused:
        states(bind(flow, Said))
    message = str(refused.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def taking(hint: Any) -> Callable[..., Any]:
    async def node(mood) -> None: ...  # type: ignore[no-untyped-def]

    node.__annotations__["mood"] = hint
    return node


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        (State[Bare], "Bare.words has no default, which a new key's state begins with"),
        (State[Loose], "write State[…] of a frozen msgspec Struct"),
        (State[int], "write State[…] of a frozen msgspec Struct"),  # type: ignore[type-var]
        (State, "write State[…] of a frozen msgspec Struct"),
    ],
)
def test_what_can_be_no_state_is_said_at_boot(hint: Any, told: str) -> None:
    message = refusal([taking(hint)])
    assert "test_state_checks.node: parameter `mood`" in message
    assert told in message


def test_one_step_at_a_time_has_it() -> None:
    assert "feel and feel_too stand side by side in one `parallel`" in refusal([parallel(feel, feel_too)])
    assert "per_line is run for each item of a list and takes a State" in refusal([lines, each(per_line)])
    inner = route(by_line, {"x": [parallel(feel, feel_too)]}, otherwise=[])
    assert "x/feel and x/feel_too" in refusal([feel, inner])
    assert states(bind([parallel(feel, lines), feel_too], Said)) == {"Mood": Mood}


def test_two_states_of_one_name_are_refused() -> None:
    other: Any = new_class("Mood", (Struct,), {"frozen": True})
    other.__module__ = "elsewhere"
    with pytest.raises(WiringError, match=r"test_state_checks and elsewhere both call a state `Mood`. Rename one."):
        merge({"Mood": Mood}, {"Mood": other})


def test_a_pipeline_says_whether_it_takes_one() -> None:
    assert states(compiled(Pipeline(on=Said, flow=[lines]))) == {}
    assert states(compiled(Pipeline(on=Said, flow=[feel, route(by_line, {"x": []}, otherwise=[])]))) == {"Mood": Mood}


async def test_a_node_can_be_tried_alone() -> None:
    mood = State(Mood(["calm"]))
    await feel(Said("glad"), mood)
    assert mood.value == Mood(["calm", "glad"])


def test_what_could_not_be_kept_is_refused_when_it_is_set() -> None:
    mood = State(Mood())
    with pytest.raises(Reject, match=f"the state Mood has .* bytes, {STATE_MAX} may be kept"):
        mood.set(Mood(["x" * STATE_MAX]))
    with pytest.raises(Reject, match=r"could not be read back: Expected `str`, got `int`"):
        mood.set(Mood([1]))  # type: ignore[list-item]
    with pytest.raises(Reject, match="was set to a Line"):
        mood.set(Line("x"))  # type: ignore[arg-type]
    assert mood.value == Mood()


async def test_a_value_that_is_changed_without_set_is_nobody_elses() -> None:
    seen: list[list[str]] = []

    async def spoil(mood: State[Mood]) -> None:
        mood.value.words.append("not said")

    async def look(mood: State[Mood]) -> None:
        seen.append(mood.value.words)

    async with open_run() as run:
        await execute(bind([feel, spoil, look], Said), run, Said("glad"))
        assert seen == [["glad"]]
        assert list(run._deps.facts.new_states) == ["Mood"]
