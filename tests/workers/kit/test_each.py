"""`each` and `Stop`."""

import asyncio

import pytest
from msgspec import Struct

from schemas import Event
from service.core.errors import WiringError
from service.core.settings import Settings
from tests.board import board_on
from tests.programs import program_of
from tests.workers.kit.runs import open_run
from workers.compiler.binding import bind
from workers.compiler.graph import edges
from workers.compiler.plan import execute
from workers.kit import Pipeline, Retry, Run, Stop, each, parallel


class Text(Event, tag="text", frozen=True):
    words: list[str]


class Word(Struct, frozen=True):
    word: str


class Length(Struct, frozen=True):
    word: str
    n: int


class Total(Struct, frozen=True):
    n: int


async def split(event: Text) -> list[Word]:
    return [Word(word) for word in event.words]


async def measure(run: Run, word: Word, event: Text) -> Length:
    await asyncio.sleep(0)
    return Length(word.word, len(word.word))


async def add(lengths: list[Length]) -> Total:
    return Total(sum(length.n for length in lengths))


async def test_a_node_runs_for_each_item_and_the_order_is_kept() -> None:
    plan = bind([split, each(measure), add], Text)
    async with open_run() as run:
        assert await execute(plan, run, Text(["a", "bcd", "ef"])) == Total(6)
        keys = [step.step for step in run._deps.facts.steps]
        assert sorted(keys) == ["add", "measure[0]", "measure[1]", "measure[2]", "split"]
    nodes, arrows = edges(plan)
    assert ("measure", "each") in nodes
    assert arrows == [("split", "measure", None), ("measure", "add", None)]


async def test_no_more_at_once_than_asked() -> None:
    at_once: list[int] = []
    running = 0

    async def hold(word: Word) -> Length:
        nonlocal running
        running += 1
        at_once.append(running)
        await asyncio.sleep(0)
        running -= 1
        return Length(word.word, 1)

    async with open_run() as run:
        result = await execute(bind([split, each(hold, at_once=2)], Text), run, Text(list("abcdefgh")))
    assert [length.word for length in result] == list("abcdefgh")
    assert max(at_once) == 2


async def test_an_empty_list_gives_an_empty_list() -> None:
    async with open_run() as run:
        assert await execute(bind([split, each(measure), add], Text), run, Text([])) == Total(0)


def test_without_a_list_upstream_the_boot_stops() -> None:
    with pytest.raises(WiringError, match=r"measure is run for each item of a list, and nothing upstream gives a list"):
        bind([each(measure)], Text)


async def enough(lengths: list[Length]) -> Total | Stop:
    return Stop(Total(-1)) if len(lengths) > 2 else Total(len(lengths))


async def double(total: Total) -> Total:
    return Total(total.n * 2)


@pytest.mark.parametrize(("words", "result"), [(["a"], Total(2)), (["a", "b", "c"], {"n": -1})])
async def test_stop_ends_the_flow_with_its_result(words: list[str], result: object) -> None:
    async with open_run() as run:
        assert await execute(bind([split, each(measure), enough, double], Text), run, Text(words)) == result


async def test_stop_in_a_branch_of_a_parallel_ends_the_flow() -> None:
    async def stop(event: Text) -> Stop:
        return Stop("enough")

    async def never(event: Text) -> Total:
        await asyncio.Event().wait()
        return Total(0)

    async with open_run() as run:
        assert await execute(bind([parallel(stop, never)], Text), run, Text([])) == "enough"


async def test_a_retry_finds_the_items_that_were_done(settings: Settings) -> None:
    ran: dict[str, int] = {}

    async def costly(word: Word) -> Length:
        ran[word.word] = ran.get(word.word, 0) + 1
        await asyncio.sleep(0.02)
        if word.word == "bad" and ran["bad"] == 1:
            raise ValueError("not at once")
        return Length(word.word, len(word.word))

    quick = Retry(attempts=3, base_s=0.02, cap_s=0.05)
    program = program_of(settings, text=Pipeline(on=Text, flow=[split, each(costly, at_once=1), add], retry=quick))
    async with board_on(settings, program) as board:
        event = await board.ended(await board.send("text", {"words": ["one", "two", "bad", "four"]}))
        assert (event["status"], event["result"]) == ("succeeded", {"n": 13})
        assert (ran["one"], ran["two"], ran["bad"]) == (1, 1, 2)
