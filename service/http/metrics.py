"""`/metrics`: the API's own numbers, those that workers report, and a bounded look at Postgres and Redis."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from redis.asyncio import Redis
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import sql
from service import stream
from service.commits import Held
from service.meters import FAMILIES, OTHER, Family, Labels, Meters, Row, Snapshot, decode
from service.redis_faults import RedisState
from service.resources import POSTGRES_ERRORS, REDIS_ERRORS, Connection, connect
from service.settings import Settings

EVERY_S: Final = 5.0
DEADLINE_S: Final = 2.0
COUNT_MAX: Final = 100_000
LOOK_MAX: Final = 1000
LETTERS_MAX: Final = 10_000
WORKERS_MAX: Final = 100
METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
STATES: Final = ("ready", "disconnected", "draining")
SQL: Final = sql.queries("metrics")

Source = tuple[Mapping[str, str], Snapshot]


async def metrics(request: Request) -> Response:
    """200 with what is left also while Postgres or Redis is away."""
    measured: Measured = request.state.door.measured
    body, media_type = await measured.told(request.headers.get("accept", ""))
    return Response(body, media_type=media_type)


def counted(app: ASGIApp) -> ASGIApp:
    """Rate, errors and duration by the route's template: a path is anybody's text."""

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        meters: Meters = scope["state"]["door"].meters
        begun, status = time.perf_counter(), 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        meters.add("callboard_http_requests_in_flight")
        try:
            await app(scope, receive, sent)
        finally:
            meters.add("callboard_http_requests_in_flight", (), -1.0)
            labels = _route(scope)
            meters.observe("callboard_http_request_duration_seconds", time.perf_counter() - begun, labels)
            meters.add("callboard_http_requests_total", (*labels, f"{status // 100}xx"))

    return answered


def _route(scope: Scope) -> Labels:
    method = scope["method"] if scope["method"] in METHODS else OTHER
    return getattr(scope.get("route"), "path", "unmatched"), method


class Measured(Collector):
    """Measures at most once in EVERY_S, however many scrape; made in the lifespan, with a registry of its own."""

    def __init__(self, settings: Settings, redis: Redis, redis_state: RedisState, meters: Meters) -> None:
        self._registry: Final = CollectorRegistry()
        self._redis: Final = redis
        self._redis_state: Final = redis_state
        names = stream.names_of(settings)
        self._streams: Final = (names.ingest, names.front, names.work, names.dead)
        self._meters: Final = meters
        self._postgres: Final = Held(lambda: connect(settings, "metrics"))
        self._alone: Final = asyncio.Lock()
        self._measured_at = -EVERY_S
        self._found: list[Source] = []
        self._own: Snapshot = {}
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def collect(self) -> Iterator[Metric]:
        sources: list[Source] = [({}, self._own), *self._found]
        for name, family in FAMILIES.items():
            metric = Metric(name.removesuffix("_total").removesuffix("_info"), family.help, family.kind)
            for extra, snapshot in sources:
                for labels, row in snapshot.get(name, ()):
                    _show(metric, name, family, {**dict(zip(family.labels, labels, strict=True)), **extra}, row)
            if metric.samples:
                yield metric

    def describe(self) -> list[Metric]:
        return []

    def close(self) -> None:
        self._postgres.drop()

    async def told(self, accept: str) -> tuple[bytes, str]:
        """Everything, with its media type: OpenMetrics where the scraper takes it."""
        encode, media_type = choose_encoder(accept)
        async with self._alone:
            await self._measure()
            self._own = self._meters.snapshot()
            return await asyncio.to_thread(encode, self._registry), media_type  # many workers have much to say

    async def _measure(self) -> None:
        if time.monotonic() - self._measured_at >= EVERY_S:
            gauges = Meters()
            workers, _ = await asyncio.gather(self._ask_postgres(gauges), self._ask_redis(gauges))
            self._found = [({}, gauges.snapshot()), *workers]
            self._measured_at = time.monotonic()

    async def _ask_postgres(self, gauges: Meters) -> list[Source]:
        try:
            async with asyncio.timeout(DEADLINE_S):
                connection = await self._postgres.connection()
                workers = await connection.fetch(SQL["living"], WORKERS_MAX)
                await _backlog(gauges, connection)
        except POSTGRES_ERRORS:
            self._postgres.drop()
            gauges.set("callboard_postgres_up", 0.0)
            return []
        gauges.set("callboard_postgres_up", 1.0)
        _workers(gauges, workers)
        return [({"worker": str(row["worker"])}, decode(row["series"])) for row in workers if row["series"]]

    async def _ask_redis(self, gauges: Meters) -> None:
        up = 0.0
        with suppress(*REDIS_ERRORS):
            async with asyncio.timeout(DEADLINE_S), self._redis.pipeline(transaction=False) as asked:
                for name in self._streams:
                    asked.xlen(name)
                lengths = await asked.execute()
            for name, length in zip(self._streams, lengths, strict=True):
                gauges.set("callboard_stream_entries", float(length), (name,))
            up = 1.0
        gauges.set("callboard_redis_up", up)
        trouble = self._redis_state.trouble
        if trouble is not None:
            gauges.set("callboard_redis_degraded", 1.0, (trouble.reason,))


async def _backlog(gauges: Meters, connection: Connection) -> None:
    row = await connection.fetchrow(SQL["backlog"], COUNT_MAX, LOOK_MAX)
    assert row is not None
    for status in ("queued", "scheduled", "running"):
        gauges.set("callboard_backlog_events", float(row[status]), (status,))
    gauges.set("callboard_backlog_oldest_age_seconds", max(0.0, row["oldest_s"] or 0.0))
    for each in await connection.fetch(SQL["letters"], LETTERS_MAX):
        gauges.set("callboard_dead_letters_last_hour", float(each["count"]), (each["reason"],))


def _workers(gauges: Meters, rows: Sequence[Any]) -> None:
    for state in STATES:
        gauges.set("callboard_workers", float(sum(row["state"] == state for row in rows)), (state,))
    for reason, count in Counter(row["reason"] for row in rows if row["state"] == "disconnected").items():
        gauges.set("callboard_workers_disconnected", float(count), (reason or "unknown",))
    for row in rows:
        worker = str(row["worker"])
        gauges.set("callboard_worker_info", 1.0, (worker, row["host"], str(row["pid"]), row["version"]))
        gauges.set("callboard_worker_slots", float(row["slots"]), (worker,))
        gauges.set("callboard_worker_in_flight", float(row["in_flight"]), (worker,))
        gauges.set("callboard_worker_beat_age_seconds", row["beat_age_s"], (worker,))


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
