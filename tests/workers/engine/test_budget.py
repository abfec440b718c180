"""Budgets: what is spent is never above them, whoever spends it."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

import sql
from schemas import Event
from schemas.identity import uuid7
from service.core.errors import Outage
from service.core.servers import Pool, open_pool
from service.core.settings import Settings
from service.core.supervise import end, supervised
from tests.board import TICKET, Board, board_on
from tests.eventually import eventually
from tests.models import with_keys
from tests.workers.engine.paying import COST_USD, MOST_USD, open_shop
from workers.engine.budget.ledger import Ledger
from workers.engine.budget.step_call_log import call_logs
from workers.engine.claim import Claimed
from workers.kit import Pipeline, Retry, Run, parallel
from workers.kit.memory import Facts, Stale
from workers.models.call_log import Call, DaySpent
from workers.models.errors import Booked

QUICK = Retry(attempts=2, base_s=0.02, cap_s=0.05)
LIMIT_USD = 1.0
SQL = sql.queries("sweeper")
LEASE_SQL = sql.queries("lease")
# What sums of floats may be off.
DUST_USD = 1e-6


class Job(Event, tag="job", frozen=True):
    samples: int = 1


class Said(Struct, frozen=True):
    count: int


async def sample(run: Run, event: Job) -> Said:
    calls = [run.llm.ask("say", returns=str, text=f"{n}") for n in range(event.samples)]
    return Said(len(await asyncio.gather(*calls)))


async def nothing(event: Job) -> None:
    return None


async def _tried(board: Board, times: int) -> bool:
    return len(await board.sql("select 1 from attempts")) == times


async def test_an_events_own_budget(settings: Settings, tmp_path: Path) -> None:
    """Calls that may cost too much side by side come one after the other; the one that can't be paid ends the event."""
    job = Pipeline(on=Job, flow=[sample], retry=QUICK, budget_usd=MOST_USD + 2.5 * COST_USD)
    async with open_shop(settings, tmp_path, job) as (board, provider):
        event = await board.ended(await board.send("job", {"samples": 3}))
        assert (event["status"], provider.asked) == ("succeeded", 3)

        event = await board.ended(await board.send("job", {"samples": 4}))
        assert (event["status"], event["calls"]) == ("dead", 3)
        assert (event["error"]["kind"], event["error"]["step"]) == ("BudgetSpent", "sample")
        assert event["error"]["message"].startswith("$0.3000 of its budget of $1.25 are spent, and the next call may")
        (letter,) = (await board.http.get("/dead-letters")).json()["items"]
        assert letter["reason"] == "rejected"

        await board.http.post(f"/events/{event['event_id']}/replay")
        event = await board.ended(event["event_id"])
        assert (event["status"], provider.asked) == ("succeeded", 7), "a replay has a budget of its own"

        waits = dict(board.workers[0].meters.snapshot()["callboard_budget_wait_seconds"])
        assert sum(waits["event", "refused"][:-1]) == 1
        assert sum(waits["event", "passed"][:-1]) == sum(waits["day", "passed"][:-1]) == provider.asked


async def test_the_days_budget_puts_off_to_the_next_day(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a minute of midnight. A wait counts from when it is stored, so the longest draw would go beyond that."""
    monkeypatch.setattr("workers.engine.budget.budgets.random.uniform", lambda low, high: (low + high) / 2)
    job = Pipeline(on=Job, flow=[sample], retry=QUICK)
    async with open_shop(settings, tmp_path, job, budget_day_usd=MOST_USD + COST_USD / 2) as (board, provider):
        before = datetime.now(UTC)
        assert (await board.ended(await board.send("job", {})))["status"] == "succeeded"
        waits = await board.send("job", {})
        await eventually(lambda: _status(board, waits, "scheduled"))
        event = await board.show(waits)
        (row,) = await board.sql("select cause, attempts, due_at from work")
        assert row["cause"].startswith("the day's budget: $0.1000 of $1.05 for ")
        assert (event["attempts"], event["calls"], event["error"]["kind"]) == (0, 0, "DaySpent")
        midnight = before.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        assert midnight + timedelta(seconds=30) <= row["due_at"] <= midnight + timedelta(minutes=1)
        assert provider.asked == 1


async def test_a_larger_budget_is_used_today(settings: Settings, tmp_path: Path) -> None:
    """By a worker that starts with it. One that starts with the same leaves to the next day what it has tried once."""
    job, event_id = Pipeline(on=Job, flow=[sample], retry=QUICK), ""
    for n, budget_usd in enumerate((COST_USD / 2, COST_USD / 2, MOST_USD * 2)):
        (tmp_path / str(n)).mkdir()
        async with open_shop(settings, tmp_path / str(n), job, budget_day_usd=budget_usd) as (board, _):
            event_id = event_id or await board.send("job", {})
            status = "succeeded" if budget_usd > MOST_USD else "scheduled"
            await eventually(partial(_tried, board, n + 1))
            await eventually(partial(_status, board, event_id, status))


async def test_no_budget_is_no_call(settings: Settings, tmp_path: Path) -> None:
    """Nor a failure that a `parallel` collects."""
    job = Pipeline(on=Job, flow=[parallel(sample, nothing, collect=True)], retry=QUICK)
    async with open_shop(settings, tmp_path, job, budget_day_usd=0) as (board, provider):
        waits = await board.send("job", {})
        await eventually(lambda: _status(board, waits, "scheduled"))
        assert provider.asked == 0


async def test_a_thousand_calls_at_once_on_one_dollar(settings: Settings, tmp_path: Path) -> None:
    """Three workers; a call costs $0.002 and may cost $0.02: what is charged comes near the limit, never above."""
    job = Pipeline(on=Job, flow=[sample], retry=QUICK)
    price, charged = "{ input = 0, output = 20 }", [0.0]
    async with open_shop(settings, tmp_path, job, budget_day_usd=LIMIT_USD, workers=3, price=price) as (board, _):

        async def nearly_spent() -> bool:
            (row,) = await board.sql(
                "select sum(cost_usd) as charged, sum(cost_usd) filter (where outcome = 'ok') as settled from calls"
            )
            charged.append(row["charged"] or 0.0)
            return (row["settled"] or 0.0) > LIMIT_USD * 0.9

        await asyncio.gather(*(board.send("job", {"samples": 20}) for _ in range(50)))
        await eventually(nearly_spent, 60)
        (day,) = await board.sql("select drawn_usd from budgets")
        assert max(*charged, day["drawn_usd"]) <= LIMIT_USD + DUST_USD


async def test_what_others_hold_is_waited_for_without_long_waits(settings: Settings, tmp_path: Path) -> None:
    """A call under way elsewhere reserves the rest of the day; what it does not cost is free within seconds."""
    job = Pipeline(on=Job, flow=[sample], retry=QUICK)
    async with open_shop(settings, tmp_path, job, budget_day_usd=MOST_USD) as (board, _):
        await board.sql("insert into budgets (tenant, day, drawn_usd) values ('default', current_date, $1)", MOST_USD)
        held = "select worker, 'default', current_date, $1 from workers"
        await board.sql(f"insert into allowances (worker, tenant, day, drawn_usd) {held}", MOST_USD)
        waits = await board.send("job", {})
        await eventually(lambda: _status(board, waits, "scheduled"))
        await board.sql("update work set snoozes = 30, due_at = clock_timestamp()")
        await eventually(lambda: _put_off_again(board, 30))
        (row,) = await board.sql("select extract(epoch from due_at - clock_timestamp()) as wait_s, cause from work")
        assert "calls under way hold the rest" in row["cause"]
        assert row["wait_s"] <= 10


async def _put_off_again(board: Board, times: int) -> bool:
    return bool(await board.sql("select 1 from work where snoozes > $1 and status = 'scheduled'", times))


async def test_what_a_worker_does_not_need_goes_back(settings: Settings, tmp_path: Path) -> None:
    job = Pipeline(on=Job, flow=[sample], retry=QUICK)
    async with open_shop(settings, tmp_path, job, budget_day_usd=100) as (board, _):
        await board.ended(await board.send("job", {}))

        async def drawn() -> bool:
            (day,) = await board.sql("select drawn_usd from budgets")
            return bool(abs(day["drawn_usd"] - COST_USD) < DUST_USD)

        await eventually(drawn)
        assert (await board.ended(await board.send("job", {})))["status"] == "succeeded"


async def test_simulated_calls_cost_nobody(settings: Settings) -> None:
    """They have a price and count against an event's own budget, but not against the day's."""
    async with board_on(replace(settings, budget_day_usd=0.0)) as board:
        event = await board.ended(await board.send("ticket.opened", TICKET))
        assert (event["status"], await board.sql("select 1 from budgets")) == ("succeeded", [])
        assert event["cost_usd"] > 0


async def _status(board: Board, event_id: str, status: str) -> bool:
    return bool((await board.show(event_id))["status"] == status)


class Spell(Struct, frozen=True):
    """A call: who makes it, the most it may cost, what becomes of it, and the share of that which it really costs."""

    worker: int
    most_usd: float
    fate: Literal["ok", "free", "unknown", "hang", "late"]
    share: float


SPELLS = st.lists(
    st.builds(
        Spell,
        worker=st.integers(0, 2),
        most_usd=st.floats(0.001, 0.6),
        fate=st.sampled_from(["ok", "ok", "ok", "free", "unknown", "hang", "late"]),
        share=st.floats(0, 1),
    ),
    min_size=1,
    max_size=30,
)


@given(spells=SPELLS)
@example_settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
async def test_accounts_are_right_whatever_becomes_of_calls(settings: Settings, spells: list[Spell]) -> None:
    """Workers that end or die, replies that come late: at no time is more charged than the limit, and what is drawn is
    what calls cost and workers hold."""
    tenant, rescued = f"t-{uuid4()}", asyncio.Event()
    real = with_keys(replace(settings, simulate="off", budget_day_usd=LIMIT_USD), openai_api_key="k")
    async with open_pool(real, "test") as pool:
        workers = [Worker(real, pool, tenant) for _ in range(3)]
        async with supervised({f"ledger {n}": each.ledger.run for n, each in enumerate(workers)}):
            for each in workers:
                await each.register()
            tasks = [asyncio.create_task(workers[spell.worker].make(spell, rescued)) for spell in spells]
            await asyncio.wait(tasks, timeout=0.3)
            await _right(pool, tenant)
            for n in {spell.worker for spell in spells if spell.fate in ("hang", "late")}:
                await pool.execute("update workers set state = 'dead' where worker = $1", workers[n].worker)
            await pool.execute(SQL["close_lost"])
            await _right(pool, tenant)
            rescued.set()
            await asyncio.wait(tasks, timeout=0.5)
            await end(tasks)  # who waits for a dead worker's call to give something back
            assert not [task.exception() for task in tasks if not task.cancelled() and task.exception()]
            for worker in workers:
                await worker.ledger.drain()
            await pool.execute("update workers set state = 'stopped' where state <> 'dead'")
            await pool.execute(SQL["close_lost"])
            await _right(pool, tenant, at_rest=True)


class Worker:
    """A ledger of its own, under a lease that is held until somebody says otherwise."""

    def __init__(self, settings: Settings, pool: Pool, tenant: str) -> None:
        self.worker = uuid4()
        self.ledger = Ledger(settings, pool)
        self._pool = pool
        self._tenant = tenant

    async def register(self) -> None:
        await self._pool.execute(
            LEASE_SQL["register"], self.worker, "host", 1, "test", timedelta(hours=1), 1, [], False
        )

    async def make(self, spell: Spell, rescued: asyncio.Event) -> None:
        unheard: Any = None  # nothing is streamed here
        call_log = call_logs(self._claimed(), Facts(), self.ledger, None, unheard)("step", self._guard)
        call = _call(spell.most_usd)
        with suppress(DaySpent, Outage, Stale):
            await call_log.open(call)
            if spell.fate in ("hang", "late"):
                await rescued.wait()
            if spell.fate == "hang":
                return
            cost_usd = {"free": 0.0, "unknown": 1.0}.get(spell.fate, spell.share) * spell.most_usd
            outcome: Booked = {"free": "rate_limited", "unknown": "unknown"}.get(spell.fate, "ok")  # type: ignore[assignment]
            await call_log.close(replace(call, cost_usd=cost_usd, outcome=outcome))

    def _claimed(self) -> Claimed:
        return Claimed(
            event_id=uuid7(),
            tenant=self._tenant,
            partition_key=None,
            source="/test",
            id="1",
            type="job",
            attributes="{}",
            parent=None,
            follow_up=None,
            data=b"{}",
            run=1,
            attempts=0,
            consecutive_losses=0,
            snoozes=0,
            doubtful_snoozes=0,
            claim=1,
            claimed_at=datetime.now(UTC),
            worker=self.worker,
        )

    async def _guard(self) -> None:
        return


def _call(most_usd: float) -> Call:
    return Call(
        call_id=uuid4(),
        at=datetime.now(UTC),
        prompt="say",
        version=1,
        hash="",
        request_hash="",
        question_hash="",
        ordinal=1,
        provider="openai",
        model="ours",
        tokens_in=0,
        tokens_out=0,
        cost_usd=most_usd,
        priced=True,
        ms=0.0,
        outcome="open",
        cause=None,
        reply=None,
        simulated=False,
    )


async def _right(pool: Pool, tenant: str, *, at_rest: bool = False) -> None:
    row = await pool.fetchrow(
        "select coalesce((select sum(drawn_usd) from budgets where tenant = $1), 0) as drawn,"
        " coalesce((select sum(drawn_usd - used_usd) from allowances where tenant = $1), 0) as held,"
        " coalesce((select sum(cost_usd) from calls where tenant = $1), 0) as charged,"
        " (select count(*) from calls where tenant = $1 and outcome = 'open') as open",
        tenant,
    )
    assert row is not None
    assert row["charged"] <= LIMIT_USD + DUST_USD
    assert row["drawn"] <= LIMIT_USD + DUST_USD
    assert row["drawn"] - row["held"] == pytest.approx(row["charged"], abs=DUST_USD)
    if at_rest:
        assert (row["held"], row["open"]) == (0, 0)
