"""Flows inside a `parallel`, bounds, and `collect`."""

import asyncio
from typing import Any, Literal

import pytest
from msgspec import Struct

from schemas import Event
from service.core.errors import Outage, Reject, Unavailable, WiringError
from tests.workers.kit.runs import open_run
from workers.compiler.binding import bind
from workers.compiler.graph import edges
from workers.compiler.plan import BoundNode, BoundParallel, execute
from workers.kit import Run, Stop, each, parallel, route
from workers.kit.flow import Flow


class Asked(Event, tag="asked", frozen=True):
    words: tuple[str, ...] = ("a", "b", "c")


class Base(Struct, frozen=True):
    text: str


class Left(Base, frozen=True):
    pass


class Right(Base, frozen=True):
    pass


class Word(Struct, frozen=True):
    text: str


async def left(asked: Asked) -> Left:
    return Left("left")


async def right(asked: Asked) -> Right:
    return Right("right")


async def more(left: Left) -> Left:
    return Left(f"{left.text}!")


async def split(asked: Asked) -> list[Word]:
    return [Word(word) for word in asked.words]


async def shout(word: Word) -> str:
    return word.text.upper()


async def side() -> Literal["l", "r"]:
    return "r"


async def join(left: Left, right: Right) -> str:
    return f"{left.text} {right.text}"


async def boom(asked: Asked) -> Right:
    raise LookupError("not there")


async def ran(flow: Flow) -> tuple[Any, Run]:
    async with open_run() as run, asyncio.timeout(10):
        return await execute(bind(flow, Asked), run, Asked()), run


def refusal(flow: Flow) -> str:
    with pytest.raises(WiringError) as refused:
        bind(flow, Asked)
    assert "\n" not in str(refused.value)
    return str(refused.value)


async def test_a_flow_in_a_parallel_is_a_sequence_of_its_own() -> None:
    result, run = await ran([parallel([left, more], right), join])
    assert result == "left! right"
    assert sorted(step.step for step in run._deps.facts.steps) == ["join", "left", "more", "right"]
    assert (await ran([parallel([left, more], right)]))[0] == [Left("left!"), Right("right")]


async def test_elements_nest_in_a_parallel_and_their_keys_are_paths() -> None:
    choice = route(side, {"l": [left], "r": [left, more]})
    result, run = await ran([parallel([split, each(shout)], parallel(choice, right)), join])
    assert result == "left! right"
    keys = {step.step for step in run._deps.facts.steps}
    assert keys == {"split", "shout[0]", "shout[1]", "shout[2]", "side", "r/left", "r/more", "right", "join"}


async def test_members_meet_while_one_is_a_flow() -> None:
    meeting = asyncio.Barrier(2)

    async def first(asked: Asked) -> Left:
        return Left("first")

    async def second(left: Left) -> Left:
        await meeting.wait()
        return left

    async def other() -> Right:
        await meeting.wait()
        return Right("other")

    assert (await ran([parallel([first, second], other), join]))[0] == "first other"


def test_the_nearest_in_each_member_and_never_one_of_two_members() -> None:
    async def take(base: Base) -> str:
        return base.text

    async def left_again() -> Left:
        return Left("again")

    plan = bind([parallel([left, more], split), take], Asked)
    (part,) = plan[1:]
    assert isinstance(part, BoundNode)
    assert part.takes == ("more",)
    message = refusal([parallel([left, more], right), take])
    assert "test_nested.take: parameter `base: Base` could be what more and right give" in message
    # However much longer one member is than the other.
    assert "could be what more and left_again give" in refusal([parallel([left, more], left_again), more])
    assert "nothing upstream gives parameter `left: Left`" in refusal([parallel([left], more)])


def test_what_comes_out_of_a_route_is_the_nearest_of_each_branch() -> None:
    async def take(base: Base, right: Right) -> None: ...

    choice = route(side, {"l": [left, right], "r": [right, left]})
    part = bind([choice, take], Asked)[1]
    assert isinstance(part, BoundNode)
    assert part.takes == ("side:Base", "side:Right")


async def test_a_parallel_is_bounded() -> None:
    running = 0
    seen: list[int] = []

    async def hold(asked: Asked) -> None:
        nonlocal running
        running += 1
        seen.append(running)
        await asyncio.sleep(0)
        running -= 1

    await ran([parallel([hold, hold], [hold, hold], hold, hold, at_once=2)])
    assert (len(seen), max(seen)) == (6, 2)
    default = bind([parallel(left, right)], Asked)[0]
    assert isinstance(default, BoundParallel)
    assert default.at_once == 10


async def test_the_first_failure_ends_nested_members_and_nothing_new_is_started() -> None:
    meeting = asyncio.Barrier(2)

    async def fails() -> Right:
        await meeting.wait()
        raise LookupError("not there")

    async def waits(asked: Asked) -> Left:
        await meeting.wait()
        await asyncio.Event().wait()
        return Left("never")

    async with open_run() as run:
        with pytest.raises(LookupError, match="not there"):
            await execute(bind([parallel([waits, more], fails)], Asked), run, Asked())
        assert {step.step: step.state for step in run._deps.facts.steps} == {"waits": "cancelled", "fails": "failed"}


async def test_a_step_that_is_over_starts_no_more_calls() -> None:
    from workers.kit.memory import Stale

    kept: list[Run] = []

    async def leak(run: Run) -> Left:
        kept.append(run)
        await run._guard()
        return Left("x")

    await ran([leak])
    with pytest.raises(Stale):
        await kept[0].outside()


async def test_collect_lets_all_run_and_gives_none_for_one_that_failed() -> None:
    go_on = asyncio.Event()

    async def fails(asked: Asked) -> Right:
        go_on.set()
        raise LookupError("not there")

    async def waits(asked: Asked) -> Left:
        await go_on.wait()
        await asyncio.sleep(0)
        return Left("left")

    async def say(left: Left | None, right: Right | None) -> str:
        return f"{left} {right}"

    result, run = await ran([parallel([waits, more], fails, collect=True), say])
    assert result == f"{Left('left!')} None"
    (failed,) = [step for step in run._deps.facts.steps if step.state == "failed"]
    assert (failed.step, failed.error) == ("fails", "LookupError: not there")
    assert (await ran([parallel(left, boom, collect=True)]))[0] == [Left("left"), None]


async def test_a_flow_that_failed_in_its_middle_gives_none_for_what_it_did_not_reach() -> None:
    async def reach(right: Right) -> Word:
        raise AssertionError("never reached")

    async def say(left: Left | None, right: Right | None, word: Word | None) -> str:
        return f"{left} {right} {word}"

    choice = route(side, {"l": [right, reach], "r": [boom, reach]})
    result, _ = await ran([parallel([left, choice], collect=True), say])
    assert result == f"{Left('left')} None None"


async def test_each_collects_too() -> None:
    async def odd(word: Word) -> Left:
        if word.text == "b":
            raise ValueError("b")
        return Left(word.text)

    async def count(found: list[Left | None]) -> list[bool]:
        return [one is None for one in found]

    async def sure(found: list[Left]) -> int:
        return len(found)

    assert (await ran([split, each(odd, collect=True), count]))[0] == [False, True, False]
    message = refusal([split, each(odd, collect=True), sure])
    assert message.endswith("What odd gives may be missing: ask for `found: list[Left | None]`.")


@pytest.mark.parametrize("error", [Outage("away"), Unavailable("away"), Reject("never")])
async def test_what_ends_the_attempt_ends_a_collecting_parallel(error: Exception) -> None:
    async def ends(asked: Asked) -> Right:
        raise error

    async def waits(asked: Asked) -> Left:
        await asyncio.Event().wait()
        return Left("never")

    with pytest.raises(type(error), match=str(error)):
        await ran([parallel(waits, ends, collect=True)])


async def test_stop_ends_the_flow_from_a_collecting_parallel_too() -> None:
    async def stop(asked: Asked) -> Right | Stop:
        return Stop("enough")

    assert (await ran([parallel([left, stop], collect=True), boom]))[0] == "enough"


async def test_a_cancelled_run_cancels_what_is_collected() -> None:
    begun = asyncio.Event()

    async def waits(asked: Asked) -> Left:
        begun.set()
        await asyncio.Event().wait()
        return Left("never")

    async with open_run() as run:
        running = asyncio.create_task(execute(bind([parallel(waits, collect=True)], Asked), run, Asked()))
        async with asyncio.timeout(10):
            await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert [step.state for step in run._deps.facts.steps] == ["cancelled"]


def test_behind_collect_a_node_asks_for_what_may_be_missing() -> None:
    message = refusal([parallel(left, right, collect=True), join])
    assert "test_nested.join: nothing upstream gives parameter `left: Left`" in message
    assert message.endswith("What left gives may be missing: ask for `left: Left | None`.")
    # A sure one further up is taken where a sure one is asked for.
    part = bind([left, parallel(left, collect=True), more], Asked)[2]
    assert isinstance(part, BoundNode)
    assert part.takes == ("left",)


@pytest.mark.parametrize(
    ("flow", "parts"),
    [
        ([parallel()], ["parallel() has no member"]),
        ([parallel(left, right, at_once=0)], ["test_nested.left", "at_once is 0", "from 1 up"]),
        ([split, each(shout, at_once=True)], ["test_nested.shout", "at_once is True"]),
        ([[left, right]], ["test_nested.left stands in a list of its own", "parallel(…)"]),
        (left, ["test_nested.left stands where a flow is wanted", "list of nodes"]),
        ([route(side, {"l": left, "r": []})], ["test_nested.left stands where a flow is wanted"]),  # type: ignore[dict-item]
        ([route(side, [left])], ["test_nested.side", "no dict"]),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_flow_is_refused_by_name(flow: Any, parts: list[str]) -> None:
    message = refusal(flow)
    assert not [part for part in parts if part not in message], message


def test_the_drawing_of_nested_flows() -> None:
    choice = route(side, {"l": [], "r": [right]})
    nodes, arrows = edges(bind([split, parallel([left, more], [each(shout), choice]), boom], Asked))
    assert nodes == [
        *[("split", "node"), ("left", "node"), ("more", "node")],
        *[("shout", "each"), ("side", "router"), ("r/right", "node"), ("boom", "node")],
    ]
    assert arrows == [
        *[("split", "left", None), ("left", "more", None)],
        *[("split", "shout", None), ("shout", "side", None), ("side", "r/right", "r")],
        *[("more", "boom", None), ("side", "boom", "l"), ("r/right", "boom", None)],
    ]
