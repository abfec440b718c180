"""`/metrics`: what this process counts. `/metrics/fleet`: what workers report, and a look at Postgres and Redis.

They are apart so that a sum over two APIs is true: each is scraped for itself, and the fleet once, from any of them.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, get_args

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from redis.asyncio import Redis
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import sql
from service.core import streams
from service.core.metrics import FAMILIES, OTHER, Family, Labels, Meters, Row, Snapshot, decode
from service.core.redis_errors import Reason, RedisState
from service.core.servers import POSTGRES_ERRORS, REDIS_ERRORS, Connection, Held, connect
from service.core.settings import Settings
from service.http.headers import add_defaults

EVERY_S: Final = 5.0
DEADLINE_S: Final = 2.0
COUNT_MAX: Final = 100_000
LOOK_MAX: Final = 1000
LETTERS_MAX: Final = 10_000
WORKERS_MAX: Final = 100
METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
STATES: Final = ("ready", "disconnected", "draining")
NO_ORDINAL: Final = "none"
SQL: Final = sql.queries("metrics")

Source = tuple[Mapping[str, str], Snapshot]


async def metrics(request: Request) -> Response:
    """The numbers of this process: no I/O."""
    metrics_pages: MetricsPages = request.state.app_state.metrics_pages
    body, media_type = metrics_pages.own(request.headers.get("accept", ""))
    return Response(body, media_type=media_type)


async def fleet(request: Request) -> Response:
    """200 with what is left also while Postgres or Redis is away."""
    metrics_pages: MetricsPages = request.state.app_state.metrics_pages
    body, media_type = await metrics_pages.fleet(request.headers.get("accept", ""))
    return Response(body, media_type=media_type)


def counted(app: ASGIApp) -> ASGIApp:
    """Rate, errors and duration by the route's template: a path is anybody's text. Each answer gets its headers."""

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        meters: Meters = scope["state"]["app_state"].meters
        begun, status = time.perf_counter(), 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                add_defaults(message)
            await send(message)

        meters.add("callboard_http_requests_in_flight")
        try:
            await app(scope, receive, sent)
        finally:
            meters.add("callboard_http_requests_in_flight", (), -1.0)
            labels = route_of(scope)
            meters.observe("callboard_http_request_duration_seconds", time.perf_counter() - begun, labels)
            meters.add("callboard_http_requests_total", (*labels, f"{status // 100}xx"))

    return answered


def route_of(scope: Scope) -> Labels:
    """The template of the path, and the method."""
    method = scope["method"] if scope["method"] in METHODS else OTHER
    return getattr(scope.get("route"), "path", "unmatched"), method


class Shown(Collector):
    """A registry of its own, with these snapshots and what is added to it."""

    def __init__(self) -> None:
        self.registry: Final = CollectorRegistry()
        self.sources: Sequence[Source] = []
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        for name, family in FAMILIES.items():
            metric = Metric(name.removesuffix("_total").removesuffix("_info"), family.help, family.kind)
            for labels, row in _together(name, family, self.sources):
                _show(metric, name, family, dict(labels), row)
            if metric.samples:
                yield metric

    def describe(self) -> list[Metric]:
        return []


class MetricsPages:
    """Looks at the fleet at most once in EVERY_S, however many scrape; made in the lifespan."""

    def __init__(self, settings: Settings, redis: Redis, redis_state: RedisState, meters: Meters) -> None:
        names = streams.names_of(settings)
        self._streams: Final = (names.ingest, names.front, names.work, names.dead)
        self._redis: Final = redis
        self._redis_state: Final = redis_state
        self._meters: Final = meters
        self._limit_usd: Final = settings.budget_day_usd
        self._postgres: Final = Held(lambda: connect(settings, "metrics"))
        self._alone: Final = asyncio.Lock()
        self._measured_at = -EVERY_S
        self._own: Final = Shown()
        self._fleet: Final = Shown()
        ProcessCollector(registry=self._own.registry)

    def close(self) -> None:
        self._postgres.drop()

    def own(self, accept: str) -> tuple[bytes, str]:
        """The numbers of this process, with their media type: OpenMetrics where the scraper takes it."""
        encode, media_type = choose_encoder(accept)
        gauges, trouble = Meters(), self._redis_state.trouble
        if trouble is not None:
            gauges.set("callboard_redis_degraded", 1.0, (trouble.reason,))
        self._own.sources = [({}, self._meters.snapshot()), ({}, gauges.snapshot())]
        return encode(self._own.registry), media_type

    async def fleet(self, accept: str) -> tuple[bytes, str]:
        """The numbers that all APIs would show alike, with their media type."""
        encode, media_type = choose_encoder(accept)
        async with self._alone:
            await self._measure()
            return await asyncio.to_thread(encode, self._fleet.registry), media_type  # many workers have much to say

    async def _measure(self) -> None:
        if time.monotonic() - self._measured_at >= EVERY_S:
            gauges = Meters()
            workers, _ = await asyncio.gather(self._ask_postgres(gauges), self._ask_redis(gauges))
            self._fleet.sources = [({}, gauges.snapshot()), *workers]
            self._measured_at = time.monotonic()

    async def _ask_postgres(self, gauges: Meters) -> list[Source]:
        try:
            async with asyncio.timeout(DEADLINE_S):
                connection = await self._postgres.connection()
                workers = await connection.fetch(SQL["living"], WORKERS_MAX)
                await _backlog(gauges, connection)
                used_usd = await connection.fetchval(SQL["budget"], datetime.now(UTC).date())
        except POSTGRES_ERRORS:
            self._postgres.drop()
            gauges.set("callboard_postgres_up", 0.0)
            return []
        gauges.set("callboard_postgres_up", 1.0)
        gauges.set("callboard_budget_day_used_usd", used_usd)
        gauges.set("callboard_budget_day_limit_usd", self._limit_usd)
        _workers(gauges, workers)
        return [({"worker": _label(row)}, decode(row["series"])) for row in workers if row["series"]]

    async def _ask_redis(self, gauges: Meters) -> None:
        up = 0.0
        with suppress(*REDIS_ERRORS):
            async with asyncio.timeout(DEADLINE_S), self._redis.pipeline(transaction=False) as pipeline:
                for name in self._streams:
                    pipeline.xlen(name)
                lengths = await pipeline.execute()
            for name, length in zip(self._streams, lengths, strict=True):
                gauges.set("callboard_stream_entries", float(length), (name,))
            up = 1.0
        gauges.set("callboard_redis_up", up)


async def _backlog(gauges: Meters, connection: Connection) -> None:
    row = await connection.fetchrow(SQL["backlog"], COUNT_MAX, LOOK_MAX)
    assert row is not None
    for status in ("queued", "scheduled", "running"):
        gauges.set("callboard_backlog_events", float(row[status]), (status,))
    gauges.set("callboard_backlog_oldest_age_seconds", max(0.0, row["oldest_s"] or 0.0))
    for letters in await connection.fetch(SQL["letters"], LETTERS_MAX):
        gauges.set("callboard_dead_letters_last_hour", float(letters["count"]), (letters["reason"],))


def _why(reason: str | None) -> str:
    """One of those of Redis; of Postgres, where the reason is a sentence, that it is Postgres."""
    if reason is None:
        return "unknown"
    return reason if reason in get_args(Reason) else "postgres"


def _workers(gauges: Meters, rows: Sequence[Any]) -> None:
    for state in STATES:
        gauges.set("callboard_workers", float(sum(row["state"] == state for row in rows)), (state,))
    for reason, count in Counter(_why(row["reason"]) for row in rows if row["state"] == "disconnected").items():
        gauges.set("callboard_workers_disconnected", float(count), (reason,))
    for row in rows:
        worker = _label(row)
        gauges.set("callboard_worker_info", 1.0, (worker, row["version"]))
        gauges.add("callboard_worker_slots", (worker,), float(row["slots"]))
        gauges.add("callboard_worker_in_flight", (worker,), float(row["in_flight"]))
        gauges.set("callboard_worker_beat_age_seconds", row["beat_age_s"], (worker,))


def _label(row: Any) -> str:
    """Which of the workers it is; those of the release before, and one that is just starting, have no ordinal yet."""
    return NO_ORDINAL if row["ordinal"] is None else str(row["ordinal"])


def _together(name: str, family: Family, sources: Sequence[Source]) -> list[tuple[tuple[tuple[str, str], ...], Row]]:
    """The rows of a family, each label set once: what workers without an ordinal report is added up."""
    rows: dict[tuple[tuple[str, str], ...], Row] = {}
    for extra, snapshot in sources:
        for labels, row in snapshot.get(name, ()):
            key = (*zip(family.labels, labels, strict=True), *extra.items())
            known = rows.get(key)
            rows[key] = row if known is None else [sum(pair) for pair in zip(known, row, strict=True)]
    return list(rows.items())


def _show(metric: Metric, name: str, family: Family, labels: dict[str, str], row: Row) -> None:
    if family.kind != "histogram":
        metric.add_sample(name, labels, row[0])
        return
    total = 0.0
    for bound, count in zip((*map(str, family.buckets), "+Inf"), row, strict=False):
        total += count
        metric.add_sample(f"{name}_bucket", {**labels, "le": bound}, total)
    metric.add_sample(f"{name}_count", labels, total)
    metric.add_sample(f"{name}_sum", labels, row[-1])
