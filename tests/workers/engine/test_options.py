"""What a pipeline says of its nodes: limits, resources, the size of results; and values that a retry sees again."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import Response

from schemas import Event
from service.core.settings import Settings
from tests.board import Board, board_on
from tests.eventually import eventually
from tests.programs import program_of
from tests.workers.engine.free_form import replayed_alike
from tests.workers.engine.paying import open_shop, said
from workers.kit import Pipeline, Retry, Run, parallel, pipeline
from workers.kit.run import CHEAP_MS

QUICK = Retry(attempts=2, base_s=0.02, cap_s=0.05)
SLOW_S = CHEAP_MS * 4 / 1000


class Job(Event, tag="job", frozen=True):
    n: int = 0


class Result(Struct, frozen=True):
    text: str


class Browser:
    """What a test opens and closes."""

    def __init__(self) -> None:
        self.pages = 0


class Log:
    """What was opened and closed, and by which task."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tasks: list[Any] = []
        self.fails = 0

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Browser]:
        self.lines.append("opening")
        self.tasks.append(asyncio.current_task())
        await asyncio.sleep(SLOW_S)
        if self.fails:
            self.fails -= 1
            raise ConnectionError("no browser there")
        yield Browser()
        self.tasks.append(asyncio.current_task())
        self.lines.append("closed")

    def resource(self) -> Any:
        opened = self._open

        @asynccontextmanager
        async def open_browser() -> AsyncIterator[Browser]:
            async with opened() as browser:
                yield browser

        return open_browser


async def look(browser: Browser, event: Job) -> Result:
    browser.pages += 1
    return Result(f"page {browser.pages > 0}")


@asynccontextmanager
async def running(settings: Settings, job: Pipeline) -> AsyncIterator[Board]:
    async with board_on(settings, program_of(settings, job=job)) as board:
        yield board


async def letters(board: Board) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await board.http.get("/dead-letters")).json()["items"]
    return items


async def test_a_node_over_its_limit_fails_by_itself(settings: Settings) -> None:
    ran: list[str] = []

    async def hangs(event: Job) -> Result:
        ran.append("hangs")
        await asyncio.Event().wait()
        return Result("never")

    job = Pipeline(on=Job, flow=[hangs], retry=QUICK, limits_s={hangs: 0.1})
    async with running(settings, job) as board:
        event = await board.ended(await board.send("job", {}))
        assert (event["status"], event["attempts"], len(ran)) == ("dead", 2, 2)
        assert (event["error"]["kind"], event["error"]["step"]) == ("TimeoutError", "hangs")
        message = event["error"]["message"]
        assert message.endswith("test_options.hangs took longer than the 0.1 s that `limits_s` gives it.")


async def test_a_limit_holds_in_the_free_form_and_is_no_failure_where_it_is_collected(settings: Settings) -> None:
    async def hangs(event: Job) -> Result:
        await asyncio.Event().wait()
        return Result("never")

    async def quick(event: Job) -> Result:
        return Result("quick")

    @pipeline(on=Job, retry=QUICK, limits_s={hangs: 0.05})
    async def free(run: Run, event: Job) -> Result:
        try:
            return await run.step(hangs, event)
        except TimeoutError as error:
            return Result(str(error))

    async with running(settings, free) as board:
        event = await board.ended(await board.send("job", {}))
        assert "0.05 s" in event["result"]["text"]

    job = Pipeline(on=Job, flow=[parallel(hangs, quick, collect=True)], limits_s={hangs: 0.05})
    async with running(settings, job) as board:
        event = await board.ended(await board.send("job", {}))
        assert (event["status"], event["result"]) == ("succeeded", [None, {"text": "quick"}])
        details = {moment["step"]: moment["detail"] for moment in event["timeline"] if moment["what"] == "step"}
        assert details["quick"] == {"state": "done"}
        assert details["hangs"]["state"] == "failed"
        assert details["hangs"]["error"].startswith("TimeoutError: ")


async def test_a_failure_behind_one_that_was_collected_is_the_one_that_is_told(settings: Settings) -> None:
    async def passed_over(event: Job) -> Result:
        raise LookupError("collected")

    async def fails(event: Job, found: Result | None) -> None:
        raise ValueError("this one")

    job = Pipeline(on=Job, flow=[parallel(passed_over, collect=True), fails], retry=QUICK)
    async with running(settings, job) as board:
        event = await board.ended(await board.send("job", {}))
        assert (event["error"]["message"], event["error"]["step"]) == ("this one", "fails")


async def test_a_resource_is_opened_once_and_closed_behind_the_last_run(settings: Settings) -> None:
    log = Log()
    job = Pipeline(on=Job, flow=[look], retry=QUICK, resources=[log.resource()])
    async with running(settings, job) as board:
        assert log.lines == [], "opened at first use"
        ids = [await board.send("job", {"n": n}) for n in range(20)]
        for event_id in ids:
            assert (await board.ended(event_id))["result"] == {"text": "page True"}
        assert log.lines == ["opening"]
    assert log.lines == ["opening", "closed"]
    assert log.tasks[0] is log.tasks[1], "what belongs to a task is closed by it"


async def test_a_resource_that_can_not_be_opened_is_an_outage(settings: Settings) -> None:
    log = Log()
    log.fails = 1
    job = Pipeline(on=Job, flow=[look], retry=QUICK, resources=[log.resource()])
    async with running(settings, job) as board:
        event = await board.ended(await board.send("job", {}))
        assert (event["status"], event["attempts"]) == ("succeeded", 1)
        (snooze,) = [moment for moment in event["timeline"] if moment["what"] == "snoozed"]
        message = snooze["detail"]["error"]["message"]
        assert "open_browser can't be opened: ConnectionError: no browser there" in message
        assert snooze["detail"]["error"]["step"] == "look"


async def test_a_resource_that_is_closed_badly_is_logged(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    @asynccontextmanager
    async def open_badly() -> AsyncIterator[Browser]:
        yield Browser()
        raise OSError("it does not close")

    async with running(settings, Pipeline(on=Job, flow=[look], resources=[open_badly])) as board:
        await board.ended(await board.send("job", {}))
        caplog.set_level(logging.ERROR)
    assert "open_badly was not closed well: OSError: it does not close" in caplog.text


async def test_the_free_form_takes_a_resource_by_its_type_and_no_key_depends_on_it(settings: Settings) -> None:
    log = Log()
    tries: list[int] = []

    async def costly(browser: Browser, event: Job) -> Result:
        tries.append(event.n)
        await asyncio.sleep(SLOW_S)
        return await look(browser, event)

    @pipeline(on=Job, retry=QUICK, resources=[log.resource()])
    async def free(run: Run, event: Job) -> Result:
        found = await run.step(costly, await run.resource(Browser), event)
        if run.attempt == 1:
            raise ValueError("once more")
        return found

    async with running(settings, free) as board:
        event_id = await board.send("job", {"n": 7})
        event = await board.ended(event_id)
        assert (event["status"], event["result"], tries) == ("succeeded", {"text": "page True"}, [7])
    assert log.lines == ["opening", "closed"]


async def test_a_resource_that_no_pipeline_names_is_told_by_name(settings: Settings) -> None:
    @pipeline(on=Job, retry=replace(QUICK, attempts=1))
    async def free(run: Run, event: Job) -> None:
        await run.resource(Browser)

    async with running(settings, free) as board:
        event = await board.ended(await board.send("job", {}))
        assert event["error"]["message"].startswith("the pipeline names no resource that gives Browser.")


@pytest.mark.parametrize("free_form", [False, True])
async def test_a_step_with_too_large_a_result_is_dead_at_once(settings: Settings, free_form: bool) -> None:
    small = replace(settings, result_max=1000)

    async def big(event: Job) -> Result:
        return Result("x" * 2000)

    async def never(result: Result) -> None:
        raise AssertionError("nothing runs behind it")

    @pipeline(on=Job)
    async def free(run: Run, event: Job) -> None:
        await run.step(never, await run.step(big, event))

    async with running(small, free if free_form else Pipeline(on=Job, flow=[parallel(big, collect=True)])) as board:
        event = await board.ended(await board.send("job", {}))
        (letter,) = await letters(board)
        assert (event["status"], letter["reason"], letter["attempts"]) == ("dead", "too_large", 1)
        assert event["error"]["step"].partition(":")[0] == "big"
        assert event["error"]["message"].startswith("the result of step big")
        assert event["error"]["message"].endswith(
            "has 2011 bytes, CALLBOARD_RESULT_MAX is 1000. Return less, or set it higher."
        )


async def test_a_pipeline_with_too_large_a_result_is_dead_at_once(settings: Settings) -> None:
    async def half(event: Job) -> Result:
        return Result("x" * 700)

    async def other_half(event: Job) -> Result:
        return Result("x" * 700)

    job = Pipeline(on=Job, flow=[parallel(half, other_half)])
    async with running(replace(settings, result_max=1000), job) as board:
        event = await board.ended(await board.send("job", {}))
        (letter,) = await letters(board)
        assert (letter["reason"], letter["attempts"], event["error"]["step"]) == ("too_large", 1, None)
        assert event["error"]["message"].startswith("the result of job has 1425 bytes")


class Drawn(Struct, frozen=True):
    at: datetime
    number: float
    name: UUID


def drawing(ran: list[Drawn], held: asyncio.Event, fails: bool) -> Pipeline:
    """A costly step whose key hangs on drawn values, and one behind it that fails or hangs the first time."""

    async def costly(drawn: Drawn) -> Drawn:
        ran.append(drawn)
        await asyncio.sleep(SLOW_S)
        return drawn

    async def stumble(run: Run, drawn: Drawn) -> Drawn:
        inside = (run.now(), run.random(), run.uuid())
        assert inside != (drawn.at, drawn.number, drawn.name)
        if not held.is_set():
            held.set()
            if fails:
                raise ValueError("not at once")
            await asyncio.Event().wait()
        return drawn

    @pipeline(on=Job, retry=QUICK)
    async def free(run: Run, event: Job) -> Drawn:
        first = Drawn(run.now(), run.random(), run.uuid())
        second = await run.step(costly, Drawn(run.now(), run.random(), run.uuid()))
        assert first != second
        return await run.step(stumble, await run.step(costly, first))

    return free


async def test_a_retry_sees_the_same_time_chance_and_name(settings: Settings) -> None:
    ran: list[Drawn] = []
    program = program_of(settings, job=drawing(ran, asyncio.Event(), fails=True))
    async with board_on(settings, program) as board:
        event_id = await board.send("job", {})
        event = await board.ended(event_id)
        assert (event["status"], event["attempts"], len(ran)) == ("succeeded", 2, 2)
        assert datetime.fromisoformat(event["result"]["at"]) == ran[1].at
        assert event["result"]["name"] == str(ran[1].name)
        await replayed_alike(board, program, event_id)


async def test_what_was_drawn_is_stored_before_a_step_that_may_depend_on_it(settings: Settings) -> None:
    """The worker is lost while a step runs: the next one draws the same, so it finds the costly steps."""
    ran: list[Drawn] = []
    held = asyncio.Event()
    program = program_of(settings, job=drawing(ran, held, fails=False))
    async with board_on(settings, program, workers=2) as board:
        event_id = await board.send("job", {})
        async with asyncio.timeout(10):
            await held.wait()
        (row,) = await board.sql("select worker from work")
        mine = next(worker for worker in board.workers if worker.lease.worker == row["worker"])
        await board.sql("update workers set state = 'dead', lease_until = '-infinity' where worker = $1", row["worker"])
        mine.executor.drop_all()
        event = await board.ended(event_id, 30)
        assert (event["status"], event["attempts"], len(ran)) == ("succeeded", 1, 2)
        await replayed_alike(board, program, event_id)


async def test_drawing_has_a_bound(settings: Settings) -> None:
    @pipeline(on=Job)
    async def free(run: Run, event: Job) -> float:
        return sum(run.random() for _ in range(1001))

    async with running(settings, free) as board:
        event = await board.ended(await board.send("job", {}))
        assert (event["status"], event["error"]["kind"]) == ("dead", "Reject")
        assert event["error"]["message"].startswith("run.random(): 1000 values may be drawn between steps")


async def test_a_failure_does_not_cut_the_call_of_a_sibling(settings: Settings, tmp_path: Path) -> None:
    asked, answered = asyncio.Event(), asyncio.Event()
    behind: list[str] = []

    async def slowly() -> Response:
        asked.set()
        await answered.wait()
        return said("late")

    async def asks(run: Run, job: Job) -> str:
        return await run.llm.ask("say", returns=str, text="hello")

    async def never(text: str) -> None:
        behind.append(text)

    async def fails(job: Job) -> Result:
        await asked.wait()
        raise ValueError("at once")

    job = Pipeline(on=Job, flow=[parallel([asks, never], fails)], retry=replace(QUICK, attempts=1))
    async with open_shop(settings, tmp_path, job) as (board, provider):
        provider.answer = slowly
        event = await board.ended(await board.send("job", {}))
        assert event["error"]["message"] == "at once"
        answered.set()

        async def booked() -> bool:
            return [row["outcome"] for row in await board.sql("select outcome from calls")] == ["ok"]

        await eventually(booked)
        assert behind == []
