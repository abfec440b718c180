"""What a process counts, for `GET /metrics`: plain numbers of one thread.

An event costs a worker some 60 µs in all; prometheus-client's own counters, which lock, would take ten of them. The API
shows these by it (service/http/metrics.py): its own, and at another address those that workers report, under the label
`worker`, which is the ordinal of a worker among those alive: a name that is new with each start would be a new series.
"""

import asyncio
import time
from bisect import bisect_left
from typing import Final, Literal, TypeAlias

from msgspec import MsgspecError, Struct, json

# As many label sets a family may have; what comes after them is counted under OTHER, so that a snapshot stays small.
SERIES_MAX: Final = 200
OTHER: Final = "other"
LAG_EVERY_S: Final = 0.5

Labels: TypeAlias = tuple[str, ...]
Row: TypeAlias = list[float]
"""One value; of a histogram the count in each bucket, the count above them all, and the sum."""
Snapshot: TypeAlias = dict[str, list[tuple[Labels, Row]]]

_QUICK_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
# Models answer in 0.5 to 30 s, so the bounds stand close together there: from 1 to 120 s each is at most twice the one
# before, and a quantile that is read from them is wrong by less than that. 60 and 120 are the time limits of a call and
# of a stream, so that what ran into them stands apart.
_ANSWER_S: Final = (1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0, 60.0, 120.0, 300.0)
_MODEL_S: Final = (0.1, 0.25, 0.5, *_ANSWER_S)
_LONG_S: Final = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, *_ANSWER_S)
_WAIT_S: Final = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
_ROWS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)


class Family(Struct, frozen=True):
    """A metric by its rules: https://prometheus.io/docs/practices/naming/."""

    kind: Literal["counter", "gauge", "histogram", "info"]
    help: str
    labels: Labels = ()
    buckets: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        return len(self.buckets) + 2 if self.kind == "histogram" else 1


def _counter(text: str, *labels: str) -> Family:
    return Family("counter", text, labels)


def _gauge(text: str, *labels: str) -> Family:
    return Family("gauge", text, labels)


def _histogram(text: str, buckets: tuple[float, ...], *labels: str) -> Family:
    return Family("histogram", text, labels, buckets)


FAMILIES: Final = {
    # the API
    "callboard_http_requests_total": _counter("Requests, by class of status.", "route", "method", "status"),
    "callboard_http_request_duration_seconds": _histogram(
        "From a request's head to the end of its answer.", _QUICK_S, "route", "method"
    ),
    "callboard_audit_total": _counter(
        "Refusals, sign-ins, sign-outs and writes of documents, those the log leaves out too.", "action", "status"
    ),
    "callboard_http_requests_in_flight": _gauge("Requests that are being answered."),
    "callboard_refused_total": _counter(
        "What a bound refused or cut short; whose: the share of this caller, or what all have.", "bound", "whose"
    ),
    "callboard_over_limit_total": _counter(
        "Events refused since a key has used up its rate or may have no more open, or its tenant fills the queue of "
        "writes; limit: rate, open or queue.",
        "limit",
    ),
    # the API and workers; those of workers have the label `worker`
    "callboard_events_accepted_total": _counter("Events stored for the first time.", "type", "via"),
    "callboard_commit_duration_seconds": _histogram("Group commits in Postgres.", _QUICK_S, "commit"),
    "callboard_commit_rows": _histogram("How many share a group commit.", _ROWS, "commit"),
    "callboard_commit_failures_total": _counter("Group commits that Postgres did not take.", "commit"),
    "callboard_commits_failing": _gauge("1 while the last group commit failed, by why.", "commit", "reason"),
    "callboard_loop_lag_seconds": _histogram("How late the event loop wakes up.", _QUICK_S),
    # workers
    "callboard_event_start_delay_seconds": _histogram("From due to claimed by a worker.", _LONG_S, "type"),
    "callboard_run_duration_seconds": _histogram("From claim to settled.", _LONG_S, "pipeline", "outcome"),
    "callboard_run_failures_total": _counter("Runs that raised, by error.", "pipeline", "error", "outcome"),
    "callboard_step_duration_seconds": _histogram("Steps of runs.", _LONG_S, "pipeline", "step", "state"),
    "callboard_events_ended_total": _counter("Events that a worker has ended.", "type", "status"),
    "callboard_child_conflicts_total": _counter(
        "Child events stored under another id, since an event from outside had theirs.", "type"
    ),
    "callboard_claims_lost_total": _counter("Claims of lost workers that this one has freed."),
    "callboard_endings_refused_total": _counter("Endings of runs that could not be stored, by error.", "error"),
    "callboard_claims_unsettled_total": _counter("Claims that ended without an outcome in a living worker.", "reason"),
    "callboard_runs_abandoned_total": _counter("Runs that swallow their cancellation: nobody waits for them any more."),
    "callboard_llm_calls_total": _counter("Calls of models.", "provider", "model", "outcome", "simulated"),
    "callboard_llm_call_duration_seconds": _histogram("Calls of models.", _MODEL_S, "provider", "model"),
    "callboard_llm_first_token_seconds": _histogram(
        "From the start of a streamed call to its first text.", _MODEL_S, "provider", "model"
    ),
    "callboard_llm_limiter_wait_seconds": _histogram(
        "What calls waited for the limits of their model; result: passed or refused.",
        _WAIT_S,
        "provider",
        "model",
        "result",
    ),
    "callboard_llm_prompt_calls_total": _counter(
        "Calls of models, by the version of a prompt.", "prompt", "version", "outcome"
    ),
    "callboard_llm_prompt_cost_usd_total": _counter(
        "What calls have cost, in US dollars, by the version of a prompt.", "prompt", "version"
    ),
    "callboard_budget_wait_seconds": _histogram(
        "What calls waited for a budget; budget: event or day; result: passed or refused.", _WAIT_S, "budget", "result"
    ),
    "callboard_llm_tokens_total": _counter("Tokens of calls.", "provider", "model", "direction", "simulated"),
    "callboard_llm_cost_usd_total": _counter("What calls have cost, in US dollars.", "provider", "model", "simulated"),
    "callboard_llm_recalled_total": _counter("Calls not made, since their replies were stored.", "pipeline"),
    "callboard_breaker_state": _gauge("1 for the state a breaker is in.", "provider", "model", "state"),
    "callboard_worker_cpu_seconds_total": _counter("CPU time of the worker's process."),
    # measured at a scrape
    "callboard_postgres_up": _gauge("Whether Postgres answered this measurement; what it knows is missing else."),
    "callboard_redis_up": _gauge("Whether Redis answered this measurement."),
    "callboard_redis_degraded": _gauge("1 for what is wrong with Redis: this API can't notify workers.", "reason"),
    "callboard_backlog_events": _gauge("Open events; counted up to 100,000. queued: due now.", "status"),
    "callboard_backlog_oldest_age_seconds": _gauge("For how long the oldest event that is due has been due."),
    "callboard_budget_day_used_usd": _gauge(
        "What the tenant that has used most has spent or reserved since midnight, UTC, in US dollars."
    ),
    "callboard_budget_day_limit_usd": _gauge("What a tenant may spend in a day, in US dollars."),
    "callboard_dead_letters_last_hour": _gauge("Dead letters of the last hour, up to 10,000.", "reason"),
    "callboard_stream_entries": _gauge("Entries in a Redis stream.", "stream"),
    "callboard_workers": _gauge("Workers whose lease holds, by state.", "state"),
    "callboard_workers_disconnected": _gauge(
        "Workers that can't do their work, by what is wrong with Redis, or `postgres`.", "reason"
    ),
    "callboard_worker_info": Family("info", "The release of a worker.", ("worker", "version")),
    "callboard_worker_slots": _gauge("Events it may run at a time.", "worker"),
    "callboard_worker_in_flight": _gauge("Events it has in hand.", "worker"),
    "callboard_worker_beat_age_seconds": _gauge("Since its lease was renewed; it runs out after 6.", "worker"),
}

_BUCKETS: Final = {name: family.buckets for name, family in FAMILIES.items()}


class Meters:
    """The numbers of one process, made where its parts are made. By the loop's thread only."""

    def __init__(self) -> None:
        self._series: Final[dict[str, dict[Labels, Row]]] = {name: {} for name in FAMILIES}
        self.lag_max_s = 0.0

    def add(self, name: str, labels: Labels = (), value: float = 1.0) -> None:
        row = self._series[name].get(labels) or self._new(name, labels)
        row[0] += value

    def set(self, name: str, value: float, labels: Labels = ()) -> None:
        row = self._series[name].get(labels) or self._new(name, labels)
        row[0] = value

    def observe(self, name: str, value: float, labels: Labels = ()) -> None:
        row = self._series[name].get(labels) or self._new(name, labels)
        row[bisect_left(_BUCKETS[name], value)] += 1
        row[-1] += value

    def _new(self, name: str, labels: Labels) -> Row:
        series = self._series[name]
        known = labels if len(series) < SERIES_MAX else (OTHER,) * len(labels)
        return series.setdefault(known, [0.0] * FAMILIES[name].width)

    def snapshot(self) -> Snapshot:
        snapshot = {name: [(labels, [*row]) for labels, row in series.items()] for name, series in self._series.items()}
        return {name: rows for name, rows in snapshot.items() if rows}

    async def watch_loop(self) -> None:
        """Measure the loop's lag until cancelled; the worst of it stays in `lag_max_s` for whoever reports it."""
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            lag_s = max(0.0, clock() - due)
            self.observe("callboard_loop_lag_seconds", lag_s)
            self.lag_max_s = max(self.lag_max_s, lag_s)


def encode(snapshot: Snapshot) -> str:
    return json.encode(snapshot).decode()


def decode(text: str) -> Snapshot:
    """What a worker reported, perhaps one of another release: what this one does not know is left out."""
    try:
        snapshot = json.decode(text, type=Snapshot)
    except MsgspecError:
        return {}
    return {
        name: [(labels, row) for labels, row in rows if _fits(FAMILIES[name], labels, row)]
        for name, rows in snapshot.items()
        if name in FAMILIES
    }


def _fits(family: Family, labels: Labels, row: Row) -> bool:
    return len(labels) == len(family.labels) and len(row) == family.width


class Waited:
    """`with Waited(meters, name, labels):` around a wait for a right: its seconds, by whether it ended in an error."""

    __slots__ = ("_begun", "_labels", "_meters", "_name")

    def __init__(self, meters: Meters, name: str, labels: tuple[str, ...]) -> None:
        self._meters, self._name, self._labels = meters, name, labels

    def __enter__(self) -> None:
        self._begun = time.perf_counter()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        result = "passed" if error is None else "refused"
        self._meters.observe(self._name, time.perf_counter() - self._begun, (*self._labels, result))
