"""Whatever user code does, its event ends: within its attempts, with a reason, a place in that code and a log line."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import msgspec
import pytest

from schemas import Event
from service.core.errors import Outage
from service.core.settings import Settings
from tests.board import Board, board_on
from tests.eventually import eventually
from tests.programs import program_of
from workers.kit import Pipeline, Reject, Retry, Run, each, parallel, pipeline, route

QUICK = Retry(attempts=2, base_s=0.02, cap_s=0.05)
HALF = "caf\udce9.pdf"


class Poked(Event, tag="poked", frozen=True):
    how: str = ""


class One(msgspec.Struct, frozen=True):
    text: str


class Two(msgspec.Struct, frozen=True):
    text: str


class PanicException(BaseException):
    """As PyO3's, which polars and tokenizers raise: no Exception."""


class Mute(Exception):
    """Nothing can be asked of it."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        raise ValueError("not to be compared")

    __hash__ = Exception.__hash__


@asynccontextmanager
async def flowing(settings: Settings, *flow: Any, **options: Any) -> AsyncIterator[Board]:
    chosen: dict[str, Any] = {"retry": QUICK, "timeout_s": 5.0, **options}
    poked = Pipeline(on=Poked, flow=flow, **chosen)
    async with board_on(settings, program_of(settings, poked=poked)) as board:
        yield board


async def ended(board: Board, how: str = "", **attributes: Any) -> dict[str, Any]:
    return await board.ended(await board.send("poked", {"how": how}, **attributes), 8)


async def cancelled_by_another() -> None:
    task = asyncio.create_task(asyncio.sleep(10))
    task.cancel()
    await task


async def cancelled_by_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(10)


async def exits_in_a_task() -> None:
    await asyncio.create_task(exits())


async def exits() -> None:
    sys.exit(1)


async def raises_panic() -> None:
    raise PanicException("called `Option::unwrap()` on a `None` value")


async def raises_half_a_surrogate() -> None:
    raise ValueError(f"file {HALF} is broken")


async def exits_in_a_thread() -> None:
    await asyncio.to_thread(sys.exit, 1)


async def interrupts() -> None:
    raise KeyboardInterrupt


async def closes() -> None:
    raise GeneratorExit


async def raises_what_is_mute() -> None:
    raise Mute


async def raises_groups() -> None:
    raise BaseExceptionGroup("several", [PanicException("one"), ExceptionGroup("more", [ValueError("two")])])


WAYS = {
    "cancelled": (cancelled_by_another, "CancelledError"),
    "cancels itself": (cancelled_by_itself, "CancelledError"),
    "panic": (raises_panic, "PanicException"),
    "half": (raises_half_a_surrogate, "ValueError"),
    "exit": (exits, "SystemExit"),
    "exit in a task": (exits_in_a_task, "SystemExit"),
    "exit in a thread": (exits_in_a_thread, "SystemExit"),
    "interrupt": (interrupts, "KeyboardInterrupt"),
    "closed": (closes, "GeneratorExit"),
    "mute": (raises_what_is_mute, "Mute"),
    "group": (raises_groups, "PanicException"),
}
FAILURES = {how: kind for how, (_, kind) in WAYS.items()}


async def fails(how: str) -> None:
    if how in WAYS:
        await WAYS[how][0]()


async def node(event: Poked) -> One:
    await fails(event.how)
    return One("fine")


async def plain(event: Poked) -> Two:
    return Two("fine")


async def last(event: Poked) -> str:
    return "done"


async def router(event: Poked) -> Literal["left", "right"]:
    await fails(event.how)
    return "left"


async def items(event: Poked) -> list[One]:
    return [One("a"), One("b")]


async def item(event: Poked, one: One) -> Two:
    await fails(event.how)
    return Two(one.text)


@pipeline(on=Poked, retry=QUICK)
async def in_the_body(run: Run, event: Poked) -> str:
    await fails(event.how)
    return "done"


@pipeline(on=Poked, retry=QUICK)
async def in_a_step(run: Run, event: Poked) -> str:
    await run.step(node, event)
    return "done"


@pipeline(on=Poked, retry=QUICK)
async def in_a_group(run: Run, event: Poked) -> str:
    async with asyncio.TaskGroup() as group:
        group.create_task(run.step(node, event))
        group.create_task(run.step(plain, event))
    return "done"


SHAPES: dict[str, Pipeline] = {
    "node": Pipeline(on=Poked, flow=[node, last], retry=QUICK),
    "parallel": Pipeline(on=Poked, flow=[parallel(node, plain), last], retry=QUICK),
    "each": Pipeline(on=Poked, flow=[items, each(item), last], retry=QUICK),
    "route": Pipeline(on=Poked, flow=[route(router, {"left": [plain], "right": []}), last], retry=QUICK),
    "body": in_the_body,
    "step": in_a_step,
    "group": in_a_group,
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_whatever_user_code_raises_is_an_attempt(settings: Settings, shape: str) -> None:
    """A1, A2, A3, A6: each ends dead after its two attempts; the worker lives, and what comes after them succeeds."""
    async with board_on(settings, program_of(settings, poked=SHAPES[shape])) as board:
        # A TaskGroup of the user's own lets a member go that cancels itself: Python has it so.
        failures = {how: kind for how, kind in FAILURES.items() if (shape, how) != ("group", "cancels itself")}
        sent = {how: await board.send("poked", {"how": how}, partitionkey=how) for how in failures}
        behind = {how: await board.send("poked", {}, partitionkey=how) for how in failures}
        for how, kind in failures.items():
            event = await board.ended(sent[how], 8)
            assert (event["status"], event["attempts"]) == ("dead", 2), how
            assert event["error"]["kind"] == kind, event["error"]
            assert event["error"]["message"], how
            assert event["error"]["where"].startswith("tests/workers/engine/test_floor.py:"), event["error"]
            assert (await board.ended(behind[how], 8))["status"] == "succeeded"
        assert {row["outcome"] for row in await board.sql("select outcome from attempts")} == {
            "failed",
            "dead",
            "succeeded",
        }


async def test_a_member_that_is_collected_may_fail_in_any_way(settings: Settings) -> None:
    async def gathered(event: Poked, one: One | None, two: Two | None) -> str:
        return f"{one and one.text}, {two and two.text}"

    async with flowing(settings, parallel(node, plain, collect=True), gathered) as board:
        for how in FAILURES:
            event = await ended(board, how)
            assert (event["status"], event["result"]) == ("succeeded", "None, fine"), (how, event)


async def test_a_run_of_another_step_is_a_mistake_like_any_other(settings: Settings) -> None:
    """Not taken for a claim that is somebody else's: nobody would ever end the event."""
    kept: list[Run] = []

    async def keeps(run: Run, event: Poked) -> One:
        kept.append(run)
        return One("kept")

    async def uses(event: Poked, one: One) -> Two:
        await kept[-1].outside()
        return Two("never")

    async with flowing(settings, keeps, uses) as board:
        event = await ended(board)
        assert (event["status"], event["attempts"], event["error"]["kind"]) == ("dead", 2, "StepOver")


async def test_of_a_group_any_reject_decides(settings: Settings) -> None:
    """C2, also in a group in a group, and raised again by `except*`."""

    async def rejects() -> None:
        raise Reject("this can't be done, ever")

    async def both(event: Poked) -> One:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fails("half"))
                group.create_task(rejects())
        except* KeyError:
            await asyncio.sleep(0)
        return One("never")

    async with flowing(settings, both) as board:
        event = await ended(board)
        assert (event["status"], event["attempts"], event["error"]["kind"]) == ("dead", 1, "Reject")
        assert event["error"]["message"].startswith("this can't be done, ever (in a group with ValueError: file caf")
        assert event["error"]["where"].endswith(" in rejects")
        (letter,) = (await board.http.get("/dead-letters")).json()["items"]
        assert letter["reason"] == "rejected"


async def test_a_group_of_outages_alone_charges_nothing(settings: Settings) -> None:
    tries = 0

    async def away(what: str) -> None:
        raise Outage(f"{what} is away", 0.01)

    async def two(event: Poked) -> One:
        nonlocal tries
        tries += 1
        if tries <= 4:
            async with asyncio.TaskGroup() as group:
                group.create_task(away("the one"))
                group.create_task(away("the other"))
        return One("back")

    async with flowing(settings, two, last) as board:
        event = await ended(board)
        assert (event["status"], event["attempts"]) == ("succeeded", 1)
        moments = [each for each in event["timeline"] if each["what"] == "snoozed"]
        assert len(moments) == 4
        assert moments[0]["detail"]["error"]["message"] == "the one is away the other is away"


async def test_a_group_of_an_outage_and_an_error_is_an_attempt_and_names_both(settings: Settings) -> None:
    async def away() -> None:
        raise Outage("it is away", 0.01)

    async def mixed(event: Poked) -> One:
        async with asyncio.TaskGroup() as group:
            group.create_task(away())
            group.create_task(fails("half"))
        return One("never")

    async with flowing(settings, mixed) as board:
        event = await ended(board)
        assert (event["status"], event["attempts"], event["error"]["kind"]) == ("dead", 2, "ValueError")
        assert "file caf\ufffd.pdf is broken (in a group with Outage: it is away (" in event["error"]["message"]


class Asked(msgspec.Struct, frozen=True):
    query: str


@pipeline(on=Poked, retry=QUICK)
async def decodes(run: Run, event: Poked) -> str:
    return msgspec.json.decode(event.how.encode(), type=Asked).query


async def test_a_decoding_error_of_user_code_is_an_attempt(settings: Settings) -> None:
    """B7: only the event's own decoding may mean that this release can't read it."""
    async with board_on(settings, program_of(settings, poked=decodes)) as board:
        for how, kind in (("{}", "ValidationError"), ("{", "DecodeError")):
            event = await ended(board, how)
            assert (event["status"], event["attempts"], event["error"]["kind"]) == ("dead", 2, kind)
        assert {row["reason"] for row in await board.sql("select reason from dead_letters")} == {"attempts_exhausted"}


async def test_an_event_that_cant_be_decoded_still_waits_for_another_release(settings: Settings) -> None:
    async with flowing(settings, node) as board:
        await board.sql(
            "with e as (insert into events (event_id, source, id, type, data) values"
            " (gen_random_uuid(), '/test', 'new', 'poked', '{\"how\": 7}') returning event_id, tenant)"
            " insert into work (event_id, tenant, status, due_at) select event_id, tenant, 'queued', now() from e"
        )

        async def waits() -> bool:
            (row,) = await board.sql("select status, attempts, cause from work")
            return row["status"] == "scheduled" and "can't read it" in row["cause"] and not row["attempts"]

        await eventually(waits, 8)


async def deep(how: str) -> float:
    return 1 / (0 if how == "zero" else 1)


async def shallow(event: Poked) -> float:
    return await deep(event.how)


async def test_an_error_says_where_in_the_users_code(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """E: the deepest frame of the user's own, on record, on the page and in the log, there with the traceback."""
    async with flowing(settings, shallow) as board:
        event = await ended(board, "zero")
        line = deep.__code__.co_firstlineno + 1
        location = f"tests/workers/engine/test_floor.py:{line} in deep"
        assert set(event["error"]) == {"kind", "message", "step", "at", "where"}
        assert event["error"]["where"] == location
        assert location in (await board.http.get(f"/ui/events/{event['event_id']}")).text
        (letter,) = (await board.http.get("/dead-letters")).json()["items"]
        assert letter["error"]["where"] == location
        lines = [each for each in caplog.records if each.exc_info and "is dead after attempt 2" in each.getMessage()]
        assert [each.levelno for each in lines] == [logging.WARNING], "the last attempt alone"
        assert location in lines[0].getMessage()


async def test_three_time_limits_are_told_apart(settings: Settings) -> None:
    """E: of the attempt, of a step, and one of the user's own."""

    async def odd(event: Poked) -> One:
        async with asyncio.timeout(0.05 if event.how == "own" else None):
            await asyncio.Event().wait()
        return One("never")

    async def limited(event: Poked) -> Two:
        await asyncio.Event().wait()
        return Two("never")

    @pipeline(on=Poked, retry=QUICK, timeout_s=0.4, limits_s={limited: 0.05})
    async def three(run: Run, event: Poked) -> str:
        await run.step(limited if event.how == "step" else odd, event)
        return "never"

    async with board_on(settings, program_of(settings, poked=three)) as board:
        told = {how: (await ended(board, how))["error"] for how in ("own", "step", "attempt")}
        assert {each["kind"] for each in told.values()} == {"TimeoutError"}
        assert told["own"]["message"] == "a time limit in the user's code, or in a library that it calls, ran out"
        assert told["step"]["message"].endswith("took longer than the 0.05 s that `limits_s` gives it.")
        assert told["attempt"]["message"] == "not finished in time: an attempt of poked may take 0.4 s (timeout_s)"
        assert told["own"]["where"].endswith(" in odd")
        assert told["step"]["where"].endswith(" in limited")
        assert told["attempt"]["where"].endswith(" in odd")


async def test_a_success_that_cant_be_stored_is_an_attempt_that_can(settings: Settings) -> None:
    """A5: the settle of a success that Postgres refuses, or that can't be encoded, has an end, and can be cancelled."""

    async def poisons(run: Run, event: Poked) -> str:
        run.vectors.upsert("places", "1", "text", metadata={"bad": "\0"})
        return "done"

    async with flowing(settings, poisons) as board:
        event = await ended(board)
        assert (event["status"], event["attempts"], event["error"]["kind"]) == ("dead", 2, "BadRow")
        assert [each["step"] for each in event["timeline"] if each["what"] == "step"] == ["poisons", "poisons"]
        rows = await board.sql("select outcome from attempts order by claim")
        assert [row["outcome"] for row in rows] == ["failed", "dead"]
