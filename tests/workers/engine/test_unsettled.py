"""Under the net a finite count: claims that come back without an outcome from a worker that lives."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from schemas import Event
from service.core.errors import Unavailable
from service.core.settings import Settings
from service.core.supervise import end
from tests.board import Board, board_on
from tests.eventually import eventually
from tests.programs import program_of
from workers.engine import ending, sweeper
from workers.engine.settle import Ending, Settler
from workers.kit import Pipeline, Retry, Run


class Poked(Event, tag="poked", frozen=True):
    how: str = ""


async def node(run: Run, event: Poked) -> str:
    return event.how


@asynccontextmanager
async def hurried(settings: Settings, monkeypatch: pytest.MonkeyPatch, **pipelines: Pipeline) -> AsyncIterator[Board]:
    """Upkeep that looks for unknown claims at each turn, and takes none for too young."""
    monkeypatch.setattr(sweeper, "UNKNOWN_EVERY_S", 0.0)
    monkeypatch.setattr(sweeper, "TURN_S", 0.2)
    wired = pipelines or {"poked": Pipeline(on=Poked, flow=[node], retry=Retry(attempts=2, base_s=0.02, cap_s=0.05))}
    async with board_on(settings, program_of(settings, **wired)) as board:

        async def age() -> None:
            while True:
                await board.sql("update work set claimed_at = claimed_at - interval '6 s' where status = 'running'")
                await asyncio.sleep(0.1)

        aging = asyncio.create_task(age())
        try:
            yield board
        finally:
            await end([aging])


def _bug(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Every ending of the events that are "bad" raises this, whatever it says."""
    settle = Settler.settle

    async def settled(self: Settler, ended: Ending, timeout_s: float) -> bool:
        if b"bad" in ended.claimed.data:
            raise error
        return await settle(self, ended, timeout_s)

    monkeypatch.setattr(Settler, "settle", settled)


async def test_five_claims_that_come_back_unsettled_are_the_end(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug of ours in every way to settle: dead, `crash_loop`, with what it was; its neighbours pay nothing."""
    _bug(monkeypatch, RuntimeError("a bug \ud83d of ours"))
    async with hurried(settings, monkeypatch) as board:
        bad = await board.send("poked", {"how": "bad"}, partitionkey="k")
        behind = await board.send("poked", {"how": "good"}, partitionkey="k")
        event = await board.ended(bad, 20)
        assert event["status"] == "dead"
        assert event["error"]["kind"] == "crash_loop"
        assert "RuntimeError: a bug \ufffd of ours" in event["error"]["message"]
        (letter,) = (await board.http.get("/dead-letters")).json()["items"]
        assert letter["reason"] == "crash_loop"
        returned = [moment["detail"]["error"] for moment in event["timeline"] if moment["what"] == "snoozed"]
        assert [row["kind"] for row in returned] == ["RuntimeError"] * 5
        assert (await board.ended(behind))["attempts"] == 1
        snapshot = board.workers[0].meters.snapshot()
        assert snapshot["callboard_claims_unsettled_total"] == [(("unsettled",), [5.0])]
        assert snapshot["callboard_endings_refused_total"] == [(("RuntimeError",), [15.0])]
        assert any("came back without an outcome" in record.getMessage() for record in caplog.records)


async def test_an_ending_that_alone_can_t_be_stored_has_an_end(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not taken for an outage while others are settled: those go on, it comes back, and is counted."""
    monkeypatch.setattr(ending, "PAUSE_S", 0.05)
    _bug(monkeypatch, Unavailable("the write was given up"))
    async with hurried(settings, monkeypatch) as board:
        bad = await board.send("poked", {"how": "bad"})

        async def others() -> bool:
            await board.ended(await board.send("poked", {"how": "good"}))
            return bool(await board.sql("select 1 from work where crash_count > 0"))

        assert await eventually(others)
        assert (await board.show(bad))["status"] in ("queued", "running")


async def test_an_outage_that_all_share_counts_as_no_crash(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's ending can be stored, for whatever reason: they wait, and nothing is counted."""
    monkeypatch.setattr(ending, "PAUSE_S", 0.02)
    tries, settle, away = 0, Settler.settle, True

    async def settled(self: Settler, ended: Ending, timeout_s: float) -> bool:
        nonlocal tries
        tries += 1
        if away:
            raise Unavailable("Postgres did not answer")
        return await settle(self, ended, timeout_s)

    monkeypatch.setattr(Settler, "settle", settled)
    async with hurried(settings, monkeypatch) as board:
        sent = [await board.send("poked", {"how": f"{n}"}) for n in range(3)]
        await eventually(lambda: _true(lambda: tries > 20))
        assert not await board.sql("select 1 from work where crash_count > 0 or status <> 'running'")
        away = False
        for event_id in sent:
            event = await board.ended(event_id)
            assert (event["status"], event["attempts"]) == ("succeeded", 1)


async def test_a_claim_whose_reply_got_lost_is_handed_back_and_no_crash(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forced: the claim commits, and its worker never hears of it. However often that is so, nobody is dead for it."""
    async with hurried(settings, monkeypatch) as board:
        (worker,) = board.workers
        take, lost = worker.consumer._claimed, 5

        async def claims(connection: Any, asked: Any) -> Any:
            nonlocal lost
            rows = await take(connection, asked)
            if rows and lost:
                lost -= 1
                raise ConnectionResetError("cut off")
            return rows

        monkeypatch.setattr(worker.consumer, "_claimed", claims)
        event = await board.ended(await board.send("poked", {"how": "good"}), 20)
        assert (event["status"], event["attempts"], lost) == ("succeeded", 1, 0)
        rows = await board.sql("select outcome, detail from attempts order by claim")
        assert [(row["outcome"], row["detail"]) for row in rows[:-1]] == [("handed_back", None)] * 5


async def test_an_event_that_comes_back_from_a_living_worker_is_no_suspect(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A6: else it would stand beside the one that does end workers, and no loss could be laid at anybody's door."""
    _bug(monkeypatch, RuntimeError("a bug"))
    async with hurried(settings, monkeypatch) as board:
        event_id = await board.send("poked", {"how": "bad"}, dueat="2099-01-01T00:00:00Z")
        await board.sql("update work set consecutive_losses = 3, due_at = now(), status = 'queued'")

        async def returned() -> bool:
            return bool(await board.sql("select 1 from work where crash_count = 1 and consecutive_losses = 0"))

        await eventually(returned)
        assert event_id


async def test_a_run_that_swallows_its_cancellation_gives_its_slot_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Cancelled by an operator, it goes on: after a few seconds nobody waits for it, and the log says where it is."""
    goes_on, over = asyncio.Event(), asyncio.Event()

    async def swallows(event: Poked) -> str:
        while not goes_on.is_set():
            try:
                await goes_on.wait()
            except asyncio.CancelledError:
                continue
        over.set()
        return "late"

    poked = Pipeline(on=Poked, flow=[swallows], timeout_s=60)
    async with hurried(settings, monkeypatch, poked=poked) as board:
        (worker,) = board.workers
        event_id = await board.send("poked", {})
        try:
            await eventually(lambda: _true(lambda: worker.executor.in_flight == 1))
            assert (await board.http.post(f"/events/{event_id}/cancel")).status_code == 202
            await eventually(lambda: _true(lambda: worker.executor.in_flight == 0))
        finally:
            goes_on.set()
        (line,) = [record.getMessage() for record in caplog.records if "swallows" in record.getMessage()]
        assert line.endswith(" in swallows")
        assert worker.meters.snapshot()["callboard_runs_abandoned_total"] == [((), [1.0])]
        await over.wait()
        assert (await board.show(event_id))["status"] == "cancelled"


async def _true(fact: Any) -> bool:
    return bool(fact())
