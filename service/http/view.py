"""How an event looks from outside: composed on reading; the timeline is no table."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias
from uuid import UUID

import asyncpg
import msgspec
from msgspec import Struct, json
from msgspec.structs import replace

from schemas.envelope import Moment as Time
from schemas.envelope import attributes_of
from schemas.outcome import Status
from service.http.app_state import raw

Row: TypeAlias = asyncpg.Record
What = Literal[
    "accepted",
    "notified",
    "claimed",
    "step",
    "call",
    "settled",
    "retry",
    "snoozed",
    "takeover",
    "replayed",
    "cancelled",
]

ENDINGS: Final[Mapping[str, What]] = {
    "succeeded": "settled",
    "dead": "settled",
    "failed": "retry",
    "snoozed": "snoozed",
    "handed_back": "snoozed",
    "lost": "takeover",
}
OPERATIONS: Final[Mapping[str, What]] = {"replay": "replayed", "cancel": "cancelled"}
CALL: Final = (
    "prompt",
    "version",
    "provider",
    "model",
    "tokens_in",
    "tokens_out",
    "cost_usd",
    "priced",
    "outcome",
    "cause",
    "simulated",
)


class Moment(Struct, frozen=True):
    """A moment of an event's timeline; `ms` is how long it lasted, or how long the event had waited for it."""

    seq: int
    at: Time
    what: What
    step: str | None
    attempt: int | None
    ms: float | None
    detail: Mapping[str, Any] | None


class EventItem(Struct, frozen=True, kw_only=True):
    """An event in a list. Its extensions stand beside its attributes; attributes that it has not are left out."""

    specversion: Literal["1.0"]
    id: str
    source: str
    type: str
    datacontenttype: str
    subject: str | None = None
    time: Time | None = None
    dataschema: str | None = None
    partitionkey: str | None = None
    dueat: Time | None = None
    traceparent: str | None = None
    event_id: UUID
    parent: UUID | None = None
    status: Status
    attempts: int
    attempts_max: int | None
    run: int
    accepted_at: Time
    accepted_by: str | None
    due_at: Time | None
    started_at: Time | None
    finished_at: Time | None
    worker: UUID | None
    pipeline: str | None
    error: dict[str, Any] | None
    cost_usd: float
    calls: int


class EventView(EventItem, frozen=True, kw_only=True):
    """An event, with its timeline. `left_out`: so many older moments are not in it."""

    data: dict[str, Any]
    result: Any
    left_out: int = 0
    timeline: list[Moment]


class EventList(Struct, frozen=True):
    """`next` is the `cursor` of the page behind this one."""

    items: list[EventItem]
    next: UUID | None


def event_view(row: Row, attempts: Sequence[Row], calls: Sequence[Row], operations: Sequence[Row]) -> dict[str, Any]:
    """`GET /events/{event_id}`, as the contract has it; of too many moments the oldest are `left_out`."""
    standing = _standing(row)
    details = (attempt["detail"] for attempt in reversed(attempts) if attempt["run"] == standing["run"])
    failed = next((detail for detail in details if detail is not None), None)
    left_out = sum(rows[0]["among"] - len(rows) for rows in (attempts, calls, operations) if rows)
    return {
        **attributes_of(dict(row)),
        "data": raw(row["data"]),
        **standing,
        "started_at": attempts[0]["first_at"] if attempts else row["claimed_at"],
        "result": raw(row["result"]),
        "error": raw(row["error"] or (failed if row["status"] != "succeeded" else None)),
        "cost_usd": round(calls[0]["total_usd"], 6) if calls else 0.0,
        "calls": calls[0]["among"] if calls else 0,
        **({"left_out": left_out} if left_out else {}),
        "timeline": timeline(row, attempts, calls, operations),
    }


def list_item(row: Row) -> dict[str, Any]:
    """An item of `GET /events`: the same without `data`, `result` and `timeline`."""
    return {
        **attributes_of(dict(row)),
        **_standing(row),
        "started_at": row["started_at"],
        "error": raw(row["error"]),
        "cost_usd": round(row["cost_usd"], 6),
        "calls": row["calls"],
    }


def _standing(row: Row) -> dict[str, Any]:
    """An open event stands in `work`, an ended one in `events`."""
    is_open = row["run_now"] is not None
    return {
        "event_id": row["event_id"],
        **({} if row["parent"] is None else {"parent": row["parent"]}),
        "status": row["status"],
        "attempts": row["attempts_now"] if is_open else row["attempts_then"],
        "attempts_max": row["attempts_max"],
        "run": row["run_now"] if is_open else row["run_then"],
        "accepted_at": row["accepted_at"],
        "accepted_by": row["accepted_by"],
        "due_at": row["due_at"],
        "finished_at": row["finished_at"],
        "worker": row["worker_now"] if is_open else row["worker_then"],
        "pipeline": row["ran"] or row["pipeline"],
    }


def timeline(row: Row, attempts: Sequence[Row], calls: Sequence[Row], operations: Sequence[Row]) -> list[Moment]:
    moments = sorted([*_moments(row, attempts, calls), *map(_operation, operations)], key=lambda moment: moment.at)
    return [replace(moment, seq=seq) for seq, moment in enumerate(moments, 1)]


def _moments(row: Row, attempts: Sequence[Row], calls: Sequence[Row]) -> Iterator[Moment]:
    yield _moment("accepted", row["accepted_at"])
    if row["notified_at"] is not None:
        yield _moment("notified", max(row["notified_at"], row["accepted_at"]))
    for attempt in attempts:
        waited_ms = _ms(row["accepted_at"], attempt["started_at"]) if attempt["claim"] == 1 else None
        yield _moment(
            "claimed",
            attempt["started_at"],
            attempt=attempt["attempt"],
            ms=waited_ms,
            detail={"worker": attempt["worker"]},
        )
        for step in json.decode(attempt["steps"]):
            if step.get("prompt"):
                yield _recalled(attempt, step)
                continue
            detail = {name: step[name] for name in ("state", "error") if name in step}
            yield _moment("step", _at(step["at"]), step["step"], attempt["attempt"], step["ms"], detail)
        if attempt["outcome"] != "cancelled":
            yield _ending(row, attempt)
    if row["claimed_at"] is not None and row["status"] == "running":
        yield _moment(
            "claimed", row["claimed_at"], attempt=row["attempts_now"] + 1, detail={"worker": row["worker_now"]}
        )
    yield from (_call(call, attempts, row) for call in calls)


def _ending(row: Row, attempt: Row) -> Moment:
    what = ENDINGS[attempt["outcome"]]
    ms = _ms(row["accepted_at"] if what == "settled" else attempt["started_at"], attempt["finished_at"])
    error = None if attempt["detail"] is None else msgspec.Raw(attempt["detail"].encode())
    detail = {"outcome": attempt["outcome"], "error": error}
    return _moment(what, attempt["finished_at"], None, attempt["attempt"], ms, detail)


def _call(call: Row, attempts: Sequence[Row], row: Row) -> Moment:
    is_left_out = attempts and call["claim"] < attempts[0]["claim"]
    now = None if is_left_out else (row["attempts_now"] or 0) + 1
    attempt = next((other["attempt"] for other in attempts if other["claim"] == call["claim"]), now)
    ms = None if call["outcome"] == "open" else round(call["ms"], 3)
    return _moment("call", call["at"], call["step"], attempt, ms, {name: call[name] for name in CALL})


def _recalled(attempt: Row, step: Mapping[str, Any]) -> Moment:
    """A call that was not made: an earlier try had its reply."""
    prompt, _, version = step["prompt"].rpartition("@")
    detail = {**dict.fromkeys(CALL), "prompt": prompt, "version": int(version), "cost_usd": 0.0, "outcome": "recalled"}
    return _moment("call", _at(step["at"]), step["step"], attempt["attempt"], 0.0, detail)


def _operation(operation: Row) -> Moment:
    return _moment(OPERATIONS[operation["action"]], operation["at"], detail={"by": operation["actor"]})


def _moment(
    what: What,
    at: datetime,
    step: str | None = None,
    attempt: int | None = None,
    ms: float | None = None,
    detail: Mapping[str, Any] | None = None,
) -> Moment:
    return Moment(0, at, what, step, attempt, ms, detail)


def _ms(begin: datetime, end: datetime) -> float:
    return round((end - begin).total_seconds() * 1000, 3)


def _at(text: str) -> datetime:
    return json.decode(json.encode(text), type=datetime)
