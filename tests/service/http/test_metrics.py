"""`GET /metrics`: what it says of what happened, by the rules, bounded, whoever is away."""

import asyncio
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import httpx
import pytest
import yaml
from msgspec.structs import replace
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as families

from schemas import Event
from service.core.metrics import FAMILIES, OTHER, SERIES_MAX, Meters, Snapshot, decode, encode
from service.core.settings import Settings
from tests.board import TICKET, Board, board_on, serving
from tests.eventually import eventually
from tests.keys import AT_HOME
from tests.pages import sections
from tests.processes import free_port
from tests.programs import program_of
from workers.kit import Pipeline, Reject, Retry, Run

REPORTED_S = 35.0
UNITS = ("_seconds", "_bytes", "_usd", "_total", "_info")
SHORT = re.compile(r"_(ms|millis|sec|secs|kb|mb|percent|count|bucket|sum)(_|$)|gauge|counter|histogram|[A-Z:]")


class Poked(Event, tag="poked", frozen=True):
    how: str = "well"


async def poke(run: Run, event: Poked) -> str:
    if event.how == "reject":
        raise Reject("never")
    if event.how == "once" and run.attempt == 1:
        raise KeyError("once")
    run.emit(Noted())
    return "done"


class Noted(Event, tag="noted", frozen=True):
    pass


async def note(event: Noted) -> None:
    return None


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports and measurements without the seconds between them."""
    monkeypatch.setattr("workers.engine.report.REPORT_S", 0.2)
    monkeypatch.setattr("service.http.metrics.EVERY_S", 0.1)


async def scraped(http: httpx.AsyncClient, *paths: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of the API and of the fleet by its name and labels, without the worker's; equal ones added up."""
    found: dict[Any, float] = {}
    for path in paths or ("/metrics", "/metrics/fleet"):
        answer = await http.get(path)
        assert answer.status_code == 200
        for family in families(answer.text):
            for sample in family.samples:
                labels = frozenset((name, value) for name, value in sample.labels.items() if name != "worker")
                found[sample.name, labels] = found.get((sample.name, labels), 0.0) + sample.value
    return found


def one(found: dict[Any, float], name: str, **labels: str) -> float:
    return found.get((f"callboard_{name}", frozenset(labels.items())), -1.0)


@pytest.mark.usefixtures("often")
async def test_it_counts_what_happened_to_events(settings: Settings) -> None:
    quick = Retry(attempts=3, base_s=0.01, cap_s=0.02)
    program = program_of(
        settings, poking=Pipeline(on=Poked, flow=[poke], retry=quick), noting=Pipeline(on=Noted, flow=[note])
    )
    async with board_on(settings, program) as board:
        ids = [await board.send("poked", {"how": how}) for how in ("well", "once", "reject")]
        await asyncio.gather(*map(board.ended, ids))
        later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        await board.send("poked", {}, dueat=later)

        async def told() -> dict[Any, float] | None:
            series = await scraped(board.http)
            return series if one(series, "events_ended_total", type="noted", status="succeeded") == 2 else None

        series = await eventually(told, REPORTED_S)
        assert series is not None
        assert one(series, "events_accepted_total", type="poked", via="http") == 4
        assert one(series, "events_accepted_total", type="noted", via="child") == 2
        assert one(series, "events_ended_total", type="poked", status="succeeded") == 2
        assert one(series, "events_ended_total", type="poked", status="dead") == 1
        assert one(series, "run_duration_seconds_count", pipeline="poking", outcome="failed") == 1
        assert one(series, "run_failures_total", pipeline="poking", error="KeyError", outcome="failed") == 1
        assert one(series, "run_failures_total", pipeline="poking", error="Reject", outcome="dead") == 1
        assert one(series, "step_duration_seconds_count", pipeline="poking", step="poke", state="failed") == 2
        assert one(series, "event_start_delay_seconds_count", type="poked") == 4
        assert one(series, "commit_duration_seconds_count", commit="settle") >= 1
        assert one(series, "dead_letters_last_hour", reason="rejected") == 1
        assert one(series, "backlog_events", status="scheduled") == 1
        assert one(series, "backlog_events", status="queued") == 0
        assert one(series, "workers", state="ready") == 1
        assert one(series, "worker_slots") == settings.concurrency
        assert one(series, "loop_lag_seconds_count") > 0
        assert one(series, "http_requests_total", route="/events", method="POST", status="2xx") == 4
        assert one(series, "budget_day_limit_usd") == settings.budget_day_usd
        assert one(series, "budget_day_used_usd") == 0


FLEET = ("worker", "backlog", "dead_letters", "stream", "postgres", "redis", "budget", "llm", "run", "step", "breaker")


@pytest.mark.usefixtures("often")
async def test_the_sum_over_two_apis_is_true_and_a_restart_makes_no_new_series(settings: Settings) -> None:
    """Prometheus scrapes each API, and the fleet from any one of them."""
    twice = program_of(settings, poking=Pipeline(on=Poked, flow=[poke]))
    async with board_on(settings, twice, workers=2) as board, serving(settings) as second:
        for _ in range(6):
            await board.ended(await board.send("poked", {"how": "reject"}))

        async def told() -> list[Any] | None:
            async with httpx.AsyncClient(headers=AT_HOME, base_url=second, timeout=10) as other:
                own = [await scraped(http, "/metrics") for http in (board.http, other)]
                fleets = [await scraped(http, "/metrics/fleet") for http in (board.http, other)]
            dead = [one(fleet, "events_ended_total", type="poked", status="dead") for fleet in fleets]
            return [own, fleets] if dead == [6, 6] else None

        series = await eventually(told, REPORTED_S)
        assert series is not None
        (first, other), fleets = series
        # What is everybody's is shown by the fleet alone, what is the process's own by no other.
        for own in (first, other):
            assert not [name for name, _ in own if name.removeprefix("callboard_").startswith(FLEET)]
        posted = {"route": "/events", "method": "POST", "status": "2xx"}
        assert (one(first, "http_requests_total", **posted), one(other, "http_requests_total", **posted)) == (6, -1)
        for fleet in fleets:
            assert not [name for name, _ in fleet if name.startswith(("callboard_http", "process_"))]
            assert one(fleet, "worker_slots") == 2 * settings.concurrency
            assert one(fleet, "dead_letters_last_hour", reason="rejected") == 6
        before = await _workers(board.http)
        assert before == {"0", "1"}
        shown = (await board.http.get("/workers")).json()["items"]
        assert {each["ordinal"] for each in shown} == {0, 1}
    async with board_on(settings, twice, workers=2) as board:
        await eventually(lambda: _has(board.http, before), REPORTED_S)


async def _workers(http: httpx.AsyncClient) -> set[str]:
    """The values of the label `worker`; no other label may be new with every start."""
    text = (await http.get("/metrics/fleet")).text
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-|(host|pid|instance)=", text)
    return {*re.findall(r'worker="([^"]*)"', text)} - {"none"}


async def _has(http: httpx.AsyncClient, workers: set[str]) -> bool:
    return await _workers(http) == workers


@pytest.mark.usefixtures("often")
async def test_workers_that_start_together_take_different_ordinals_and_the_smallest(settings: Settings) -> None:
    async with board_on(settings, workers=5) as board:
        await eventually(lambda: _has(board.http, {*"01234"}), REPORTED_S)


async def test_what_workers_of_the_release_before_report_is_added_up(board: Board) -> None:
    """They write no ordinal: their series bear one label in common, and none is there twice."""
    for _ in range(2):
        (row,) = await board.sql(
            "insert into workers (worker, host, pid, version, lease_until, state, slots, in_flight, pipelines)"
            " values (gen_random_uuid(), 'h', 1, '0.1', now() + interval '1 h', 'ready', 7, 1, '{}') returning worker"
        )
        meters = Meters()
        meters.add("callboard_claims_lost_total", (), 3.0)
        await board.sql(
            "insert into worker_metrics (worker, at, lag_s, breakers, series) values ($1, now(), 0, '{}', $2)",
            *(row["worker"], encode(meters.snapshot())),
        )
    text = (await board.http.get("/metrics/fleet")).text
    assert 'callboard_claims_lost_total{worker="none"} 6.0' in text
    slots = re.findall(r'callboard_worker_slots{worker="none"} (\S+)', text)
    assert float(slots[0]) in (14.0, 14.0 + board.settings.concurrency), "the board's own may be starting yet"
    assert list(lint(text)) == []


@pytest.mark.usefixtures("often")
async def test_first_tokens_waits_and_versions_of_prompts_are_measured(board: Board) -> None:
    event = await board.ended(await board.send("ticket.opened", TICKET))
    calls = [moment["detail"] for moment in event["timeline"] if moment["what"] == "call"]
    classified = [call for call in calls if call["prompt"] == "tickets/classify"]
    (streamed,) = [call for call in calls if call["prompt"] == "tickets/draft"] or [None]

    async def told() -> dict[Any, float] | None:
        series = await scraped(board.http, "/metrics/fleet")
        made = sum(value for (name, _), value in series.items() if name == "callboard_llm_prompt_calls_total")
        return series if made >= len(calls) else None

    series = await eventually(told, REPORTED_S)
    assert series is not None
    version = {"prompt": "tickets/classify", "version": str(classified[0]["version"])}
    assert one(series, "llm_prompt_calls_total", **version, outcome="ok") == len(classified)
    assert one(series, "llm_prompt_cost_usd_total", **version) == pytest.approx(sum(c["cost_usd"] for c in classified))
    waits = [value for (name, _), value in series.items() if name == "callboard_llm_limiter_wait_seconds_count"]
    assert sum(waits) >= len(calls)
    firsts = [value for (name, _), value in series.items() if name == "callboard_llm_first_token_seconds_count"]
    assert sum(firsts) == (1 if streamed else 0)


def test_a_quantile_of_calls_that_took_twelve_seconds_is_read_as_about_that() -> None:
    """As Prometheus reads it: a line from one bound to the next. It was 29 s between bounds of 10 and 30."""
    meters = Meters()
    for n in range(100):
        meters.observe("callboard_llm_call_duration_seconds", 11.0 + n / 50, ("openai", "m"))
    ((_, row),) = meters.snapshot()["callboard_llm_call_duration_seconds"]
    bounds = FAMILIES["callboard_llm_call_duration_seconds"].buckets
    rank, below, low = 95.0, 0.0, 0.0
    for bound, count in zip(bounds, row, strict=False):
        if below + count >= rank:
            assert low + (bound - low) * (rank - below) / count == pytest.approx(12.9, rel=0.5)
            break
        below, low = below + count, bound
    close = [high / low for low, high in pairwise(bounds) if low >= 1 and high <= 120]
    assert max(close) <= 2
    assert {60.0, 120.0} <= {*bounds}


async def both_formats_are_whole_and_by_the_rules(http: httpx.AsyncClient) -> None:
    there: set[str] = set()
    for path in ("/metrics", "/metrics/fleet"):
        assert list(lint((await http.get(path)).text)) == []
        asked = {"Accept": "application/openmetrics-text; version=1.0.0"}
        answer = await http.get(path, headers=asked)
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        there |= {each.name for each in open_families(answer.text)}  # type: ignore[no-untyped-call]
    assert there >= {"callboard_llm_calls", "callboard_worker", "process_cpu_seconds"}


@pytest.mark.usefixtures("often")
async def test_calls_of_models_are_counted_with_their_cost_in_both_formats(board: Board) -> None:
    event = await board.ended(await board.send("ticket.opened", TICKET))
    calls = [moment["detail"] for moment in event["timeline"] if moment["what"] == "call"]
    assert calls
    where = {"provider": calls[0]["provider"], "model": calls[0]["model"]}

    async def told() -> dict[Any, float] | None:
        series = await scraped(board.http)
        made = sum(value for (name, _), value in series.items() if name == "callboard_llm_calls_total")
        return series if made >= event["calls"] else None

    series = await eventually(told, REPORTED_S)
    assert series is not None
    cost = sum(value for (name, _), value in series.items() if name == "callboard_llm_cost_usd_total")
    assert cost == pytest.approx(event["cost_usd"], abs=1e-6)
    assert cost > 0
    made = sum(value for (name, _), value in series.items() if name == "callboard_llm_calls_total")
    assert made == event["calls"]
    assert one(series, "llm_calls_total", **where, outcome="ok", simulated="true") >= 1
    assert one(series, "breaker_state", **where, state="closed") == 1
    assert one(series, "breaker_state", **where, state="open") == 0
    shown = (await board.http.get("/workers")).json()["items"][0]
    assert shown["breakers"][f"{where['provider']}/{where['model']}"] == "closed"
    assert shown["lag_s"] >= 0
    await both_formats_are_whole_and_by_the_rules(board.http)


async def test_paths_and_methods_are_nobodys_labels(api: httpx.AsyncClient) -> None:
    await api.get("/events/018f0000-0000-7000-8000-000000000000")
    await api.get("/no/such/path")
    await api.request("PROPFIND", "/events")
    text = (await api.get("/metrics")).text
    assert 'route="/events/{event_id}",status="4xx"' in text
    assert 'route="unmatched"' in text
    assert 'method="other"' in text
    assert not re.search("018f0000|such|PROPFIND", text)
    assert re.search(r"^callboard_http_requests_in_flight 1.0$", text, re.MULTILINE)


async def test_the_backlog_and_its_oldest_are_seen_without_a_worker(api: httpx.AsyncClient, settings: Settings) -> None:
    import asyncpg

    now = datetime.now(UTC)
    for due_at in (None, None, now + timedelta(hours=1)):
        body = {"type": "ticket.opened", "data": TICKET, **({"dueat": due_at.isoformat()} if due_at else {})}
        assert (await api.post("/events", json=body)).status_code == 202
    connection = await asyncpg.connect(settings.database_url)
    await connection.execute(
        "update work set due_at = now() - interval '90 s' where event_id ="
        " (select event_id from work where notified_at is not null order by event_id limit 1)"
    )
    await connection.close()
    series = await scraped(api)
    assert one(series, "backlog_events", status="queued") == 2
    assert one(series, "backlog_events", status="scheduled") == 1
    assert one(series, "backlog_oldest_age_seconds") == pytest.approx(90, abs=20)
    assert one(series, "workers", state="ready") == 0
    assert one(series, "postgres_up") == 1
    assert one(series, "redis_up") == 1


async def test_many_scrapes_are_one_measurement(api: httpx.AsyncClient) -> None:
    await api.get("/metrics/fleet")
    await api.post("/events", json={"type": "ticket.opened", "data": TICKET})
    texts = await asyncio.gather(*(scraped(api) for _ in range(20)))
    assert {one(text, "backlog_events", status="queued") for text in texts} == {0}, "measured just before the event"
    assert {one(text, "events_accepted_total", type="ticket.opened", via="http") for text in texts} == {1}


async def test_with_postgres_and_redis_away_it_says_so(settings: Settings) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    away = replace(settings, database_url=f"postgresql://x@{nowhere}/x", redis_url=f"redis://{nowhere}/0")
    async with serving(away) as url, httpx.AsyncClient(headers=AT_HOME, base_url=url, timeout=10) as http:
        series = await scraped(http)
    assert one(series, "postgres_up") == 0
    assert one(series, "redis_up") == 0
    assert not [name for name, _ in series if name.startswith(("callboard_backlog", "callboard_workers"))]
    assert one(series, "http_requests_in_flight") == 1


async def test_a_postgres_that_stands_still_is_waited_for_two_seconds(settings: Settings) -> None:
    """A listener that says nothing, ever."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        hung = replace(settings, database_url=f"postgresql://x@127.0.0.1:{silent.getsockname()[1]}/x?sslmode=disable")
        async with serving(hung) as url, httpx.AsyncClient(headers=AT_HOME, base_url=url, timeout=30) as http:
            begun = asyncio.get_running_loop().time()
            texts = await asyncio.gather(*(scraped(http) for _ in range(5)))
            assert 2 <= asyncio.get_running_loop().time() - begun < 8
    assert {one(text, "postgres_up") for text in texts} == {0}


def lint(text: str) -> Iterator[str]:
    """What promtool would say of it, and each family in one piece, each series once, histograms that grow."""
    names = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    yield from (f"{name} is there twice" for name in set(names) if names.count(name) > 1)
    seen = set()
    for family in families(text):
        if not family.documentation:
            yield f"{family.name} has no HELP"
        for sample in family.samples:
            series = (sample.name, frozenset(sample.labels.items()))
            if series in seen:
                yield f"{series} is there twice"
            seen.add(series)
            if family.type == "counter" and not sample.name.endswith(("_total", "_created")):
                yield f"{sample.name} is a counter without _total"
            if family.type == "gauge" and sample.name.endswith("_total"):
                yield f"{sample.name} is a gauge with _total"
        if SHORT.search(family.name):
            yield f"{family.name} has a name against the rules"
        buckets: dict[Any, list[float]] = {}
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                own = frozenset((name, value) for name, value in sample.labels.items() if name != "le")
                buckets.setdefault(own, []).append(sample.value)
        yield from (f"{family.name} shrinks" for counts in buckets.values() if counts != sorted(counts))


def test_the_lint_sees_what_is_wrong() -> None:
    wrong = "# HELP a_ms x\n# TYPE a_ms counter\na_ms 1\n# TYPE b gauge\nb_total 1\n# HELP b x\n# TYPE b gauge\n"
    wrong += "b 1\nb 1\n"
    assert len(list(lint(wrong))) >= 4


def test_families_are_named_by_their_units() -> None:
    for name, family in FAMILIES.items():
        assert name.startswith("callboard_")
        assert (family.kind == "counter") == name.endswith("_total"), name
        assert (family.kind == "histogram") == bool(family.buckets), name
        assert not SHORT.search(name), name
        assert not set(family.labels) & {"le", "quantile", "key", "tenant", "event", "event_id"}, name
        assert not any(label in name for label in ("duration", "age", "lag", "delay") if not name.endswith(UNITS)), name


def test_a_family_has_a_bounded_number_of_series() -> None:
    meters = Meters()
    for n in range(SERIES_MAX * 5):
        meters.add("callboard_events_accepted_total", (f"type {n}", "http"))
    rows = dict(meters.snapshot()["callboard_events_accepted_total"])
    assert len(rows) == SERIES_MAX + 1
    assert rows[OTHER, OTHER] == [SERIES_MAX * 4]


def test_a_histogram_counts_up_to_and_with_its_bounds() -> None:
    meters = Meters()
    for value in (0.0, 0.001, 0.0011, 1e9):
        meters.observe("callboard_run_duration_seconds", value, ("p", "succeeded"))
    ((_, row),) = meters.snapshot()["callboard_run_duration_seconds"]
    assert (row[0], row[1], row[-2]) == (2, 1, 1)


def test_of_another_releases_report_what_fits_is_taken() -> None:
    meters = Meters()
    meters.add("callboard_claims_lost_total")
    told: Snapshot = {
        **meters.snapshot(),
        "callboard_of_tomorrow_total": [((), [1.0])],
        "callboard_run_duration_seconds": [(("one label",), [1.0])],
    }
    assert decode(encode(told)) == {"callboard_claims_lost_total": [((), [1.0])], "callboard_run_duration_seconds": []}
    assert decode('{"another": "form"}') == {}


@pytest.mark.usefixtures("often")
async def test_a_worker_that_has_gone_is_not_shown(settings: Settings) -> None:
    async with serving(settings) as url, httpx.AsyncClient(headers=AT_HOME, base_url=url, timeout=10) as http:
        async with board_on(settings) as board:
            await eventually(lambda: _shows(http, "callboard_worker_cpu_seconds_total{"), REPORTED_S)
            assert (await board.sql("select count(*) as n from worker_metrics"))[0]["n"] == 1
        await eventually(lambda: _shows(http, "callboard_worker_slots{", there=False), REPORTED_S)


async def _shows(http: httpx.AsyncClient, what: str, *, there: bool = True) -> bool:
    return (what in (await http.get("/metrics/fleet")).text) == there


def test_the_jobs_that_are_shown_scrape_every_api_and_the_fleet_once() -> None:
    text = sections("deploy/operations.md")["What to watch"]
    (told,) = re.findall(r"```yaml\n(scrape_configs:.*?)```", text, re.DOTALL)
    own, fleet = yaml.safe_load(told)["scrape_configs"]
    assert (own.get("metrics_path", "/metrics"), fleet["metrics_path"]) == ("/metrics", "/metrics/fleet")
    assert len(own["static_configs"][0]["targets"]) > 1
    assert len(fleet["static_configs"][0]["targets"]) == 1


def test_what_to_watch_has_each_family() -> None:
    text = sections("deploy/operations.md")["What to watch"]
    (table,) = re.findall(r"^\| metric, `callboard_` before each .*\n\|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    named = {f"callboard_{name}" for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == FAMILIES.keys()
    assert {name.partition("{")[0] for name in re.findall(r"callboard_\w+", text)} - {"callboard_"} <= FAMILIES.keys()
