"""A bound flow runs: side by side where it says so, one branch of a route, every step on record."""

import asyncio
from collections.abc import AsyncIterator
from typing import Literal

import pytest
from msgspec import Struct

from schemas import Event
from tests.workers.kit.runs import open_run
from workers.compiler.binding import bind
from workers.compiler.graph import edges
from workers.compiler.plan import execute
from workers.kit import Run, parallel, route
from workers.kit.flow import Flow
from workers.kit.round_trip import Unstorable


class Asked(Event, tag="asked", frozen=True):
    label: str = "left"
    text: str = "how?"


class Left(Struct, frozen=True):
    text: str


class Elsewhere:
    class Left(Struct, frozen=True):
        text: str


class Right(Struct, frozen=True):
    text: str


class Answer(Struct, frozen=True):
    text: str


@pytest.fixture
async def run() -> AsyncIterator[Run]:
    async with open_run() as opened:
        yield opened


async def done(run: Run, flow: Flow, event: Asked | None = None) -> object:
    async with asyncio.timeout(10):
        return await execute(bind(flow, Asked), run, event or Asked())


def steps(run: Run) -> list[tuple[str, str]]:
    return [(step.step, step.state) for step in run._deps.facts.steps]


async def side(asked: Asked) -> Literal["left", "right", "neither"]:
    return "left" if asked.label == "left" else "right" if asked.label == "right" else "neither"


async def anyone(asked: Asked) -> str:
    return asked.label


async def to_left(asked: Asked) -> Left:
    return Left(f"left {asked.text}")


async def to_right(asked: Asked) -> Right:
    return Right(f"right {asked.text}")


async def say_left(left: Left) -> Answer:
    return Answer(left.text)


async def say_right(right: Right) -> Answer:
    return Answer(right.text)


async def shrug() -> Answer:
    return Answer("no idea")


async def loud(answer: Answer) -> str:
    return answer.text.upper()


async def test_values_go_from_node_to_node(run: Run) -> None:
    assert await done(run, [to_left, say_left, loud], Asked(text="why?")) == "LEFT WHY?"
    assert steps(run) == [("to_left", "done"), ("say_left", "done"), ("loud", "done")]
    assert all(step.ms >= 0 and step.at.tzinfo for step in run._deps.facts.steps)


async def test_the_members_of_a_parallel_meet(run: Run) -> None:
    meeting = asyncio.Barrier(3)

    async def first() -> Left:
        await meeting.wait()
        return Left("one")

    async def second() -> Right:
        await meeting.wait()
        return Right("two")

    async def third() -> int:
        await meeting.wait()
        return 3

    async def gather(left: Left, right: Right, number: int) -> list[object]:
        return [left.text, right.text, number]

    assert await done(run, [parallel(first, second, third), gather]) == ["one", "two", 3]


async def test_the_result_of_a_parallel_is_a_list_in_its_order(run: Run) -> None:
    assert await done(run, [parallel(to_right, to_left)]) == [Right("right how?"), Left("left how?")]


async def test_the_first_failure_cancels_its_siblings_and_surfaces_as_itself(run: Run) -> None:
    meeting = asyncio.Barrier(3)
    ends: list[str] = []

    async def fails() -> Left:
        await meeting.wait()
        raise LookupError("not there")

    async def waits() -> Right:
        await meeting.wait()
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("waits")
        return Right("never")

    async def fails_in_its_cleaning_up() -> int:
        await meeting.wait()
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("and this on top")

    async def never(left: Left) -> Answer:
        raise AssertionError("nothing runs behind a failure")

    with pytest.raises(LookupError, match="not there"):
        await done(run, [parallel(waits, fails, fails_in_its_cleaning_up), never])
    assert ends == ["waits"]
    assert steps(run)[0] == ("fails", "failed")
    assert dict(steps(run)) == {"fails": "failed", "waits": "cancelled", "fails_in_its_cleaning_up": "failed"}


async def test_a_cancelled_run_cancels_every_member(run: Run) -> None:
    meeting = asyncio.Barrier(3)

    async def one() -> Left:
        await meeting.wait()
        await asyncio.Event().wait()
        return Left("never")

    async def two() -> Right:
        await meeting.wait()
        await asyncio.Event().wait()
        return Right("never")

    running = asyncio.create_task(done(run, [parallel(one, two)]))
    async with asyncio.timeout(10):
        await meeting.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert dict(steps(run)) == {"one": "cancelled", "two": "cancelled"}


@pytest.mark.parametrize(
    ("label", "said", "walked"),
    [
        ("left", "LEFT HOW?", ["side", "left/to_left", "left/say_left", "loud"]),
        ("right", "RIGHT HOW?", ["side", "right/to_right", "right/say_right", "loud"]),
        ("elsewhere", "NO IDEA", ["side", "neither/shrug", "loud"]),
    ],
)
async def test_one_branch_runs_and_what_it_gives_goes_on(run: Run, label: str, said: str, walked: list[str]) -> None:
    branches: dict[str, Flow] = {"left": [to_left, say_left], "right": [to_right, say_right], "neither": [shrug]}
    assert await done(run, [route(side, branches), loud], Asked(label)) == said
    assert [step for step, _ in steps(run)] == walked


async def test_otherwise_takes_the_labels_without_a_branch(run: Run) -> None:
    flow: Flow = [route(anyone, {"left": [to_left, say_left]}, otherwise=[shrug]), loud]
    assert await done(run, flow, Asked("left")) == "LEFT HOW?"
    assert await done(run, flow, Asked("whatever")) == "NO IDEA"
    assert steps(run)[-2][0] == "otherwise/shrug"


async def test_a_label_that_was_never_declared_fails_by_name(run: Run) -> None:
    async def liar() -> Literal["left"]:
        return "up"  # type: ignore[return-value]

    with pytest.raises(Unstorable, match="the result of step liar could not be read back: Invalid enum value 'up'"):
        await done(run, [route(liar, {"left": [to_left]})])


async def test_an_empty_branch_does_nothing(run: Run) -> None:
    assert await done(run, [route(anyone, {"left": []}, otherwise=[shrug])]) is None
    assert steps(run) == [("anyone", "done")]


async def test_a_step_has_a_key_of_its_own_and_its_run_knows_it(run: Run) -> None:
    keys: list[str] = []

    async def note(run: Run) -> None:
        keys.append(run.step_key)

    async def pick() -> Literal["a"]:
        return "a"

    await done(run, [note, note, parallel(note, note), route(pick, {"a": [note, note]}), note])
    assert sorted(keys) == sorted(["note", "note#2", "note#3", "note#4", "a/note", "a/note#2", "note#5"])
    assert {step for step, _ in steps(run)} == {*keys, "pick"}


async def test_a_node_may_be_called_as_the_handles_are(run: Run) -> None:
    async def event(asked: Asked) -> Left:
        return Left(asked.text)

    async def again(asked: Asked, left: Left) -> Right:
        return Right(f"{left.text} {asked.label}")

    again.__name__ = "run"

    async def last(run: Run, right: Right) -> str:
        return f"{run.source} {right.text}"

    assert await done(run, [event, again, last]) == "/test how? left"


async def test_two_types_of_one_name_come_out_of_a_route_as_two(run: Run) -> None:
    async def left_elsewhere() -> Elsewhere.Left:
        return Elsewhere.Left("elsewhere")

    async def both(left: Left, other: Elsewhere.Left) -> list[str]:
        return [left.text, other.text]

    flow: Flow = [route(anyone, {"left": [to_left, left_elsewhere]}, otherwise=[left_elsewhere, to_left]), both]
    assert await done(run, flow) == ["left how?", "elsewhere"]


def test_the_drawing_has_every_step_and_every_way() -> None:
    flow: Flow = [
        parallel(to_left, to_right),
        route(side, {"left": [say_left], "right": [say_right], "neither": [shrug]}),
        loud,
    ]
    nodes, arrows = edges(bind(flow, Asked))
    assert ("side", "router") in nodes
    assert {name for name, kind in nodes if kind == "node"} == {
        *("to_left", "to_right", "left/say_left", "right/say_right", "neither/shrug", "loud")
    }
    assert set(arrows) == {
        *[("to_left", "side", None), ("to_right", "side", None)],
        *[
            ("side", "left/say_left", "left"),
            ("side", "right/say_right", "right"),
            ("side", "neither/shrug", "neither"),
        ],
        *[("left/say_left", "loud", None), ("right/say_right", "loud", None), ("neither/shrug", "loud", None)],
    }


def test_the_drawing_keeps_the_labels_of_empty_branches() -> None:
    _, arrows = edges(bind([route(side, {"left": [to_left], "right": [], "neither": []}), to_right], Asked))
    assert arrows == [
        *[("side", "left/to_left", "left"), ("left/to_left", "to_right", None)],
        *[("side", "to_right", "right"), ("side", "to_right", "neither")],
    ]
