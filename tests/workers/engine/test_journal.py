"""A completed step that cost something is not run again: not by a retry, not after a takeover, not by a replay."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from msgspec import Struct

from schemas import Event
from service.core.settings import Settings
from tests.board import Board, board_on
from tests.eventually import eventually
from tests.programs import program_of
from tests.workers.engine.free_form import replayed_alike
from workers.kit import Pipeline, Retry, Run, parallel, pipeline
from workers.kit.run import CHEAP_MS

QUICK = Retry(attempts=2, base_s=0.02, cap_s=0.05)
SLOW_S = CHEAP_MS * 4 / 1000


class Job(Event, tag="job", frozen=True):
    fails: int = 0


class Left(Struct, frozen=True):
    n: int


class Right(Struct, frozen=True):
    n: int


class Sum(Struct, frozen=True):
    n: int


class Counts:
    """How often each node really ran."""

    def __init__(self) -> None:
        self.ran: dict[str, int] = {}
        self.held = asyncio.Event()

    def count(self, name: str) -> int:
        self.ran[name] = self.ran.get(name, 0) + 1
        return self.ran[name]


@asynccontextmanager
async def running(settings: Settings, job: Pipeline, workers: int = 1) -> AsyncIterator[Board]:
    async with board_on(settings, program_of(settings, job=job), workers=workers) as board:
        yield board


def counting(counts: Counts) -> Pipeline:
    """Two costly steps side by side, and one behind them that fails as often as the event says."""

    async def left(run: Run, event: Job) -> Left:
        counts.count("left")
        run.vectors.upsert("notes", "left", "what left wrote")
        await asyncio.sleep(SLOW_S)
        return Left(1)

    async def right(event: Job) -> Right:
        counts.count("right")
        await asyncio.sleep(SLOW_S)
        return Right(2)

    async def add(event: Job, left: Left, right: Right) -> Sum:
        if counts.count("add") <= event.fails:
            raise ValueError("not yet")
        return Sum(left.n + right.n)

    return Pipeline(on=Job, flow=[parallel(left, right), add], retry=QUICK)


async def test_a_retry_finds_what_was_done(settings: Settings) -> None:
    counts = Counts()
    async with running(settings, counting(counts)) as board:
        event = await board.ended(await board.send("job", {"fails": 1}))
        assert (event["status"], event["result"]) == ("succeeded", {"n": 3})
        assert counts.ran == {"left": 1, "right": 1, "add": 2}
        states = [moment["detail"]["state"] for moment in event["timeline"] if moment["what"] == "step"]
        assert states.count("replayed") == 2
        # What a replayed step had asked to be written is written with the end of the event.
        assert len(await board.sql("select 1 from documents where collection = 'notes'")) == 1


async def test_a_replay_starts_from_what_the_last_run_remembers(settings: Settings) -> None:
    counts = Counts()
    async with running(settings, counting(counts)) as board:
        event_id = await board.send("job", {"fails": 2})
        assert (await board.ended(event_id))["status"] == "dead"
        await board.http.post(f"/events/{event_id}/replay")
        assert (await board.ended(event_id))["result"] == {"n": 3}
        assert counts.ran == {"left": 1, "right": 1, "add": 3}

        unknown = await board.http.post(f"/events/{event_id}/replay", json={"from": "nowhere"})
        assert (unknown.status_code, unknown.json()["errors"][0]["path"]) == (422, "$.from")
        (run,) = (await board.sql("select run from events"))[0]
        assert run == 2


async def test_a_replay_from_a_step_drops_it_and_what_follows(settings: Settings) -> None:
    counts = Counts()

    async def first(event: Job) -> Left:
        counts.count("first")
        await asyncio.sleep(SLOW_S)
        return Left(1)

    async def second(left: Left) -> Right:
        counts.count("second")
        await asyncio.sleep(SLOW_S)
        return Right(left.n + 1)

    async with running(settings, Pipeline(on=Job, flow=[first, second], retry=QUICK)) as board:
        event_id = await board.send("job", {})
        await board.ended(event_id)
        await board.http.post(f"/events/{event_id}/replay", json={"from": "second"})
        assert (await board.ended(event_id))["run"] == 2
        assert counts.ran == {"first": 1, "second": 2}


async def test_a_stored_result_that_no_longer_fits_is_dead_and_says_so(settings: Settings) -> None:
    counts = Counts()
    async with running(settings, counting(counts)) as board:
        event_id = await board.send("job", {"fails": 2})
        await board.ended(event_id)
        await board.sql("""update journal set entry = '{"result":{"n":"two"}}' where step = 'right'""")
        await board.http.post(f"/events/{event_id}/replay")
        event = await board.ended(event_id)
        assert (event["status"], event["error"]["kind"]) == ("dead", "JournalMismatch")
        (letter,) = (await board.http.get("/dead-letters")).json()["items"]
        assert letter["reason"] == "journal_mismatch"
        await board.http.post(f"/events/{event_id}/replay", json={"from": "right"})
        assert (await board.ended(event_id))["status"] == "succeeded"


async def test_a_takeover_goes_on_where_the_lost_worker_was(settings: Settings) -> None:
    counts = Counts()

    async def costly(event: Job) -> Left:
        counts.count("costly")
        await asyncio.sleep(SLOW_S)
        return Left(1)

    async def hang(run: Run, left: Left) -> Sum:
        if counts.count("hang") == 1:
            counts.held.set()
            await asyncio.Event().wait()
        return Sum(left.n)

    async with running(settings, Pipeline(on=Job, flow=[costly, hang], retry=QUICK), workers=2) as board:
        event_id = await board.send("job", {})
        async with asyncio.timeout(10):
            await counts.held.wait()
        (row,) = await board.sql("select worker from work")
        mine = next(worker for worker in board.workers if worker.lease.worker == row["worker"])
        await board.sql("update workers set state = 'dead', lease_until = '-infinity' where worker = $1", row["worker"])
        mine.executor.drop_all()
        event = await board.ended(event_id, 30)
        assert (event["status"], event["attempts"]) == ("succeeded", 1)
        assert counts.ran == {"costly": 1, "hang": 2}


async def test_memory_is_refused_to_a_stale_claim(settings: Settings) -> None:
    """Somebody else claims the event while a step runs: its result is not remembered, and nothing follows."""
    counts = Counts()
    go_on = asyncio.Event()

    async def slow(event: Job) -> Left:
        if counts.count("slow") == 1:
            counts.held.set()
            await go_on.wait()
        await asyncio.sleep(SLOW_S)
        return Left(counts.ran["slow"])

    async def behind(left: Left) -> Sum:
        counts.count("behind")
        return Sum(left.n)

    async with running(settings, Pipeline(on=Job, flow=[slow, behind], retry=QUICK)) as board:
        event_id = await board.send("job", {})
        async with asyncio.timeout(10):
            await counts.held.wait()
        # The claim is raised, as a rescue and another worker's claim would leave it, with nobody there to go on.
        await board.sql("update work set claim = claim + 1")
        go_on.set()
        await eventually(lambda: _empty_handed(board))
        assert await board.sql("select 1 from journal") == []
        assert "behind" not in counts.ran
        await board.sql("update work set status = 'queued', worker = null, notified_at = null, due_at = now()")
        assert (await board.ended(event_id))["result"] == {"n": 2}


async def _empty_handed(board: Board) -> bool:
    return not board.workers[0].executor.in_flight


async def test_progress_starts_the_count_of_attempts_anew(settings: Settings) -> None:
    counts = Counts()

    async def a(event: Job) -> Left:
        if counts.count("a") == 1:
            raise ValueError("a once")
        return Left(1)

    async def b(left: Left) -> Right:
        if counts.count("b") == 1:
            raise ValueError("b once")
        return Right(2)

    async with running(settings, Pipeline(on=Job, flow=[a, b], retry=QUICK)) as board:
        event = await board.ended(await board.send("job", {}))
        assert event["status"] == "succeeded", "two failures, but at two steps: two attempts at each were allowed"


async def test_the_free_form_finds_its_steps_again(settings: Settings) -> None:
    counts = Counts()

    async def draft(run: Run, topic: str, round_no: int) -> Left:
        counts.count("draft")
        await asyncio.sleep(SLOW_S)
        return Left(round_no)

    async def judge(left: Left) -> bool:
        if counts.count("judge") == 2:
            raise ValueError("the critic stumbles")
        await asyncio.sleep(SLOW_S)
        return left.n >= 2

    @pipeline(on=Job, retry=QUICK)
    async def critic(run: Run, event: Job) -> Sum:
        for round_no in range(5):
            left = await run.step(draft, "tea", round_no=round_no)
            if await run.step(judge, left):
                return Sum(left.n)
        return Sum(-1)

    program = program_of(settings, job=critic)
    async with board_on(settings, program) as board:
        event = await board.ended(await board.send("job", {}))
        assert (event["status"], event["result"]) == ("succeeded", {"n": 2})
        assert counts.ran == {"draft": 3, "judge": 4}
        steps: list[Any] = [moment["step"] for moment in event["timeline"] if moment["what"] == "step"]
        assert all(step.startswith(("draft:", "judge:")) for step in steps)
        await replayed_alike(board, program, event["event_id"])
