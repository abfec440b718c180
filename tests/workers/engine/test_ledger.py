"""Ledger and memo: a call is on record before it is made, and one that was answered is not made again."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from msgspec import Struct
from starlette.responses import Response

from schemas import Event
from service.core.errors import Unavailable
from service.core.group_commit import GroupCommit
from service.core.settings import Settings
from tests.board import Board
from tests.eventually import eventually
from tests.workers.engine.paying import COST_USD, MOST_USD, Provider, open_shop, said, timeline_calls
from workers.kit import Pipeline, Retry, Run, parallel
from workers.models.call_log import Call

QUICK = Retry(attempts=2, base_s=0.02, cap_s=0.05)


class Job(Event, tag="job", frozen=True):
    fails: int = 0
    samples: int = 1


class Said(Struct, frozen=True):
    texts: list[str]


class Other(Struct, frozen=True):
    text: str


class Fails:
    """Raises so often as the event says, wherever it is asked."""

    def __init__(self) -> None:
        self.left: int | None = None

    def once(self, event: Job) -> None:
        self.left = event.fails if self.left is None else self.left
        self.left -= 1
        if self.left >= 0:
            raise ValueError("not yet")


def sampling() -> Pipeline:
    fails = Fails()

    async def sample(run: Run, event: Job) -> Said:
        calls = [run.llm.ask("say", returns=str, text="hello") for _ in range(event.samples)]
        texts = await asyncio.gather(*calls)
        fails.once(event)
        return Said(list(texts))

    return Pipeline(on=Job, flow=[sample], retry=QUICK)


async def test_a_retry_gets_back_what_was_answered(settings: Settings, tmp_path: Path) -> None:
    async with open_shop(settings, tmp_path, sampling()) as (board, provider):
        event = await board.ended(await board.send("job", {"fails": 1, "samples": 5}))
        assert (event["status"], event["attempts"]) == ("succeeded", 2)
        assert provider.asked == event["calls"] == 5, (
            "five samples of one prompt are five calls, and none of them twice"
        )
        assert event["cost_usd"] == pytest.approx(5 * COST_USD)
        rows = await board.sql("select ordinal, reply, memory, outcome from calls order by ordinal")
        assert [(row["ordinal"], row["memory"], row["outcome"]) for row in rows] == [
            (n, True, "ok") for n in range(1, 6)
        ]
        assert event["result"] == {"texts": [row["reply"] for row in rows]}, "each sample got its own reply back"
        outcomes = [call["outcome"] for call in timeline_calls(event)]
        assert (outcomes.count("ok"), outcomes.count("recalled")) == (5, 5)


async def test_as_many_come_back_as_were_answered(settings: Settings, tmp_path: Path) -> None:
    """Two of five get an error: the try behind the snooze pays for those two again, and only for them."""
    async with open_shop(settings, tmp_path, sampling()) as (board, provider):

        async def two_fail() -> Response:
            return Response("{}", 503) if provider.asked in (2, 4) else await provider.well()

        provider.answer = two_fail
        event = await board.ended(await board.send("job", {"samples": 5}), 30)
        assert (event["status"], event["attempts"]) == ("succeeded", 1), "an outage is not charged"
        assert provider.asked == event["calls"] == 7
        outcomes = sorted(call["outcome"] for call in timeline_calls(event))
        assert outcomes == ["ok"] * 5 + ["recalled"] * 3 + ["unknown"] * 2
        assert event["cost_usd"] == pytest.approx(5 * COST_USD + 2 * MOST_USD), "a 503 may be billed"


async def test_a_replay_starts_from_the_last_runs_entries(settings: Settings, tmp_path: Path) -> None:
    async with open_shop(settings, tmp_path, sampling()) as (board, provider):
        event_id = await board.send("job", {"fails": 3, "samples": 2})
        assert (await board.ended(event_id))["status"] == "dead"
        await board.http.post(f"/events/{event_id}/replay")
        event = await board.ended(event_id)
        assert (event["status"], event["run"], provider.asked) == ("succeeded", 2, 2)
        await board.http.post(f"/events/{event_id}/replay", json={"from": "sample"})
        assert (await board.ended(event_id))["run"] == 3
        assert provider.asked == 4, "from a step on is from before its calls"


async def test_a_reply_that_was_mended_is_remembered_as_what_was_asked(settings: Settings, tmp_path: Path) -> None:
    fails = Fails()

    async def strict(run: Run, event: Job) -> Other:
        reply = await run.llm.ask("say", returns=Other, text="hello")
        fails.once(event)
        return reply

    async with open_shop(settings, tmp_path, Pipeline(on=Job, flow=[strict], retry=QUICK)) as (board, provider):

        async def mended() -> Response:
            return said('{"text": "well"}' if provider.asked > 1 else "{}")

        provider.answer = mended
        event = await board.ended(await board.send("job", {"fails": 1}))
        assert (event["status"], event["result"], provider.asked) == ("succeeded", {"text": "well"}, 2)


async def test_an_open_call_is_seen_with_the_most_it_may_cost(settings: Settings, tmp_path: Path) -> None:
    async with open_shop(settings, tmp_path, sampling()) as (board, provider):
        go_on = _hold(provider)
        event_id = await board.send("job", {})
        await eventually(lambda: _asked(provider, 1))
        event = await board.show(event_id)
        (call,) = [moment for moment in event["timeline"] if moment["what"] == "call"]
        assert (call["detail"]["outcome"], call["ms"]) == ("open", None)
        assert (event["calls"], event["cost_usd"]) == (1, pytest.approx(MOST_USD))
        assert (await board.http.get(f"/events/{event_id}", headers={"Accept": "text/html"})).status_code == 200
        go_on.set()
        assert (await board.ended(event_id))["cost_usd"] == pytest.approx(COST_USD)


async def test_what_is_cut_off_is_finished_and_remembered(settings: Settings, tmp_path: Path) -> None:
    """One branch fails while the call of its sibling is under way: the retry finds that reply."""
    fails = Fails()
    both = asyncio.Event()

    async def slow(run: Run, event: Job) -> Other:
        return Other(await run.llm.ask("say", returns=str, text="hello"))

    async def stumble(run: Run, event: Job) -> Said:
        await both.wait()
        fails.once(event)
        return Said([])

    async def add(slow: Other, stumble: Said) -> Other:
        return slow

    slow_retry = Retry(attempts=2, base_s=2.0, cap_s=2.0)
    job = Pipeline(on=Job, flow=[parallel(slow, stumble), add], retry=slow_retry)
    async with open_shop(settings, tmp_path, job) as (board, provider):
        go_on = _hold(provider)
        event_id = await board.send("job", {"fails": 1})
        await eventually(lambda: _asked(provider, 1))
        both.set()
        await eventually(lambda: _failed(board))
        go_on.set()
        event = await board.ended(event_id)
        assert (event["status"], provider.asked) == ("succeeded", 1)


async def test_a_worker_that_ends_books_what_it_cuts_off(settings: Settings, tmp_path: Path) -> None:
    async with open_shop(settings, tmp_path, sampling(), budget_day_usd=10) as (board, provider):
        _hold(provider)
        await board.send("job", {})
        await eventually(lambda: _asked(provider, 1))
        database = board.sql
    (row,) = await database("select outcome, cause, cost_usd, memory from calls")
    assert tuple(row) == ("unknown", "cancelled", pytest.approx(MOST_USD), False)
    assert await database("select 1 from allowances") == []
    (day,) = await database("select drawn_usd from budgets")
    assert day["drawn_usd"] == pytest.approx(MOST_USD), "what was drawn and not used has gone back"


async def test_a_dead_workers_calls_are_unknown_until_it_wakes_up(settings: Settings, tmp_path: Path) -> None:
    """A fact is never refused: what the frozen worker's call really cost is booked when it comes back, but its reply is
    not remembered, and the budget is right before and after."""
    async with open_shop(settings, tmp_path, sampling(), workers=2, budget_day_usd=50) as (board, provider):
        go_on = _hold(provider)
        event_id = await board.send("job", {})
        await eventually(lambda: _asked(provider, 1))
        (row,) = await board.sql("select worker from work")
        await board.sql("update workers set state = 'dead', lease_until = '-infinity' where worker = $1", row["worker"])
        await eventually(lambda: _asked(provider, 2))
        first = "select outcome, cost_usd, memory from calls where claim = 1"
        await eventually(lambda: _outcome(board, "unknown"))
        assert tuple((await board.sql(first))[0]) == ("unknown", pytest.approx(MOST_USD), False)
        go_on.set()
        assert (await board.ended(event_id))["status"] == "succeeded"
        await eventually(lambda: _outcome(board, "ok"))
        assert tuple((await board.sql(first))[0]) == ("ok", pytest.approx(COST_USD), False)
        (settled,) = await board.sql(
            "select drawn_usd - (select coalesce(sum(drawn_usd - used_usd), 0) from allowances) as usd from budgets"
        )
        assert settled["usd"] == pytest.approx(2 * COST_USD)


def _hold(provider: Provider) -> asyncio.Event:
    """Let calls hang until the event is set."""
    go_on = asyncio.Event()

    async def hold() -> Response:
        await go_on.wait()
        return await provider.well()

    provider.answer = hold
    return go_on


async def _asked(provider: Provider, times: int) -> bool:
    return provider.asked >= times


async def _failed(board: Board) -> bool:
    return bool(await board.sql("select 1 from attempts where outcome = 'failed'"))


async def _outcome(board: Board, outcome: str) -> bool:
    return bool(await board.sql("select 1 from calls where claim = 1 and outcome = $1", outcome))


async def test_a_call_noted_while_the_worker_stood_still_is_not_made(settings: Settings, tmp_path: Path) -> None:
    async with open_shop(settings, tmp_path, sampling()) as (board, provider):
        lease, ledger = board.workers[0].lease, board.workers[0].ledger
        opened, noted = ledger.open, list[object]()

        async def slowly(row: tuple[Any, ...], unsent: Call) -> bool:
            held = await opened(row, unsent)
            if not noted:
                lease.worker = uuid4()  # what the heartbeat does that finds its lease lost
            noted.append(row)
            return held

        ledger.open = slowly  # type: ignore[method-assign]
        event = await board.ended(await board.send("job", {}), 30)
        assert (event["status"], event["attempts"], provider.asked) == ("succeeded", 1, 1)
        first, second = timeline_calls(event)
        assert (first["outcome"], first["cost_usd"]) == ("connection", 0.0)
        assert (second["outcome"], second["cost_usd"]) == ("ok", COST_USD)


async def test_a_call_of_which_nobody_heard_that_it_was_noted_is_not_charged(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, lost = GroupCommit.put, list[object]()

    async def unheard(commits: GroupCommit[Any, Any], item: Any, timeout_s: float) -> Any:
        answer = await put(commits, item, timeout_s)
        if commits._name == "calls" and not lost:
            lost.append(item)
            raise Unavailable("Postgres did not answer in time")
        return answer

    monkeypatch.setattr(GroupCommit, "put", unheard)
    async with open_shop(settings, tmp_path, sampling()) as (board, provider):
        event_id = await board.send("job", {})
        assert (await board.ended(event_id))["status"] == "succeeded"
        await eventually(lambda: _outcome(board, "connection"))
        assert (provider.asked, (await board.show(event_id))["cost_usd"]) == (1, pytest.approx(COST_USD))
