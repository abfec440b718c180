"""Rows 38 to 40, 42 and 43: the provider of the model refuses, fails, hangs, is away for a minute, for a day."""

import asyncio
import itertools
from collections.abc import Callable

import pytest

from tests.eventually import eventually
from tests.faults.child import PATIENCE_S
from tests.faults.oracle import judge
from tests.faults.rig import Rig
from tests.faults.sink import Called
from tests.faults.stage import REST_S
from tests.faults.usercode import FILES

RETRY_AFTER = ("1", "soon", "-5", "Wed, 21 Oct 2015 07:28:00 GMT")
CAP_S = 60.0
BURST = 10_000
AWAY_S = 60.0
WORKERS = 2
SLOTS = 100
# Until a breaker has seen enough, calls that are under way with the last of these, and one try each ten seconds.
TRIES_MAX = WORKERS * (20 + SLOTS + AWAY_S / 10 + 1)
AT_A_TIME = 10
PER_S = 10
LIMITS = """
smart = [{ provider = "openai", model = "other" }]

[[fast]]
provider = "openai"
model = "ours"
limits = { requests_per_min = 600, concurrency = 10 }
"""
DAY_SNOOZES = 145  # six quarters of an hour of doubling, then one each ten minutes


@pytest.mark.slow_fault
async def test_row_38_refused_with_429(rig: Rig) -> None:
    """No attempt, no slot while it waits, and the breaker stays closed: when the provider answers, all goes on."""
    await rig.api()
    await rig.worker(concurrency=4)
    answers = iter(RETRY_AFTER * 3)
    rig.sink.fault = lambda _: _fault(rig, "429,retry_after=" + each if (each := next(answers, "")) else "")
    asking = [asyncio.create_task(rig.load.send("probe.ask")) for _ in range(24)]
    await asyncio.gather(*asking)
    beside = [await rig.load.send("probe.once") for _ in range(10)]
    await eventually(lambda: _ended(rig, [each.event_id for each in beside]))
    rig.expects_s = REST_S
    await judge(rig)
    causes = await rig.sql("select distinct detail->>'message' as told from attempts where outcome = 'snoozed'")
    assert causes
    assert not [row for row in causes if "breaker" in row["told"]]


@pytest.mark.slow_fault
async def test_row_38_limits_are_kept_by_workers_one_of_which_is_killed(rig: Rig) -> None:
    """So that nothing has to be refused: ten calls at a time over three workers, ten a second, and at first what comes
    in one second. What the dead one had under way counts until the provider has done with it."""
    rig.expects_s = REST_S
    tree = rig.newer({**FILES, "prompts/models.toml": LIMITS})
    await rig.api()
    victim, *_ = [await rig.worker(tree=tree) for _ in range(3)]
    rig.sink.latency_s = lambda: 0.7
    sending = asyncio.create_task(rig.load.burst(100, ["probe.ask"], keys=50))
    await eventually(lambda: asyncio.sleep(0, len(rig.sink.calls) > 40), PATIENCE_S)
    await rig.kill(victim)
    await sending
    await judge(rig)
    calls = rig.sink.calls
    ends = [(call.done_at, -1) for call in calls if call.done_at is not None]
    steps = sorted([*((call.at, 1) for call in calls), *ends])
    running = list(itertools.accumulate(step for _, step in steps))
    assert AT_A_TIME / 2 < max(running) <= AT_A_TIME
    begun = sorted(call.at for call in calls)
    early = [n for n, at in enumerate(begun) if n > PER_S * (at - begun[0] + 2)]  # a second for the first one's way
    assert not early


@pytest.mark.slow_fault
async def test_row_38_an_hour_is_asked_for(rig: Rig) -> None:
    """It is honoured up to a minute, and this once is enough: nobody else asks meanwhile."""
    await rig.api()
    await rig.worker(concurrency=4)
    refused = iter(["429,retry_after=3600"])
    rig.sink.fault = lambda _: _fault(rig, next(refused, ""))
    await rig.load.send("probe.ask")
    await eventually(lambda: rig.sql("select 1 from work where status = 'scheduled'"))
    for _ in range(10):
        await rig.load.send("probe.ask")
    rows = await eventually(lambda: _all_wait(rig, 11))
    assert len(rig.sink.calls) == 1
    assert all(CAP_S - 10 < row["wait_s"] <= CAP_S + 2 for row in rows), rows
    rig.expects_s = CAP_S + REST_S
    await judge(rig)


@pytest.mark.slow_fault
@pytest.mark.parametrize("share", [1.0, 0.3])
async def test_row_39_it_fails(rig: Rig, share: float) -> None:
    """For some seconds; the breaker opens, nobody is charged, and until a try has gone well there is one at a time."""
    await rig.api()
    await rig.worker(concurrency=20)
    failing = True
    rig.sink.fault = lambda _: _fault(rig, "529" if failing and rig.random.random() < share else "")
    load = asyncio.create_task(rig.load.burst(300, ["probe.ask"]))
    opened = "select 1 from attempts where outcome = 'snoozed' and detail->>'message' like '%breaker%' limit 1"
    await eventually(lambda: rig.sql(opened), 60)
    failing = False
    await load
    rig.expects_s = REST_S
    await judge(rig)


@pytest.mark.slow_fault
@pytest.mark.parametrize("how", ["hang", "stall", "drip,wait_s=10"])
async def test_row_40_it_does_not_end(rig: Rig, how: str) -> None:
    """A call has a minute in all, however little comes how slowly; then its event waits, uncharged, and asks again."""
    await rig.api()
    await rig.worker(concurrency=20)
    slow = iter([how] * 5)
    rig.sink.fault = lambda _: _fault(rig, next(slow, ""))
    await rig.load.burst(10, ["probe.ask"])
    rig.expects_s = CAP_S + REST_S
    await judge(rig)
    lost = await rig.sql("select ms from calls where outcome = 'unknown' and cause = 'timeout'")
    assert len(lost) == 5
    assert max(row["ms"] for row in lost) < CAP_S * 1000 + 2000


@pytest.mark.slow_fault
async def test_row_42_away_for_a_minute_under_a_burst(rig: Rig) -> None:
    """Nothing dead, no attempt charged; each worker tries it once at a time; no herd when it is back."""
    await rig.api()
    model = await rig.model()
    for _ in range(WORKERS):
        await rig.worker(concurrency=SLOTS, model=model)
    load = asyncio.create_task(rig.load.burst(BURST, ["probe.ask"], senders=60))
    await rig.load.accepted(BURST // 20)
    model.turn("cut")
    rig.injected()
    tried, arrived = model.accepted, len(rig.sink.calls)
    await asyncio.sleep(AWAY_S)
    tried, arrived = model.accepted - tried, len(rig.sink.calls)
    most = _herd(rig)
    model.turn("pass")
    await load
    rig.expects_s = REST_S
    evidence = await judge(rig)
    assert tried <= TRIES_MAX, "while it was away"
    back = rig.sink.calls[arrived:]
    answered_at = min(call.done_at for call in back if call.done_at)
    first = [call for call in back if call.at <= answered_at]
    assert len(first) <= WORKERS, "until one was answered each worker asked once"
    assert most() <= WORKERS * SLOTS
    assert {event["status"] for event in evidence.events.values()} == {"succeeded"}


@pytest.mark.slow_fault
async def test_row_43_away_for_a_day(rig: Rig) -> None:
    """The day is played fast: whenever all events wait, their time comes. They wait ten minutes at most, uncharged."""
    await rig.api()
    model = await rig.model()
    await rig.worker(concurrency=40, model=model)
    model.turn("cut")
    rig.injected()
    await rig.load.burst(40, ["probe.ask"])
    waits_s: list[float] = []
    while True:
        rows = await eventually(lambda: _all_wait(rig, 40), 60)
        waits_s += [row["wait_s"] for row in rows]
        if min(row["snoozes"] for row in rows) > 20:
            break
        await rig.sql("update work set due_at = clock_timestamp(), snoozes = snoozes + 3")
    assert max(waits_s) <= 600
    await rig.sql("update work set snoozes = $1, doubtful_snoozes = $1", DAY_SNOOZES)
    assert not await rig.sql("select 1 from work where attempts > 0")
    model.turn("pass")
    rig.expects_s = REST_S
    await judge(rig)


def _fault(rig: Rig, fault: str) -> str:
    rig.injected(bool(fault))
    return fault


def _herd(rig: Rig) -> Callable[[], int]:
    """How many calls were under way at once, at most, from now on."""
    under_way, most = 0, 0

    async def at(place: str, _: Called) -> None:
        nonlocal under_way, most
        under_way += 1 if place == "arrived" else -1
        most = max(most, under_way)

    rig.sink.at = at
    return lambda: most


async def _ended(rig: Rig, ids: list[str]) -> bool:
    return not await rig.sql("select 1 from work where event_id = any ($1::uuid[])", ids)


async def _all_wait(rig: Rig, count: int) -> list[dict[str, float]]:
    rows = await rig.sql(
        "select extract(epoch from due_at - clock_timestamp())::float8 as wait_s, snoozes from work"
        " where status = 'scheduled' and due_at > clock_timestamp()"
    )
    return [dict(row) for row in rows] if len(rows) == count else []
