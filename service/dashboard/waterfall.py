"""The timeline of one event, drawn: a row for each moment, a bar for what lasted; long waits are drawn short."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate, pairwise
from typing import Any, Final

from msgspec import Struct, convert, json
from msgspec.structs import replace

from service.dashboard.look import lasting
from service.http import view

Span = tuple[float, float]

ROWS_MAX: Final = 500
TICKS: Final = (0, 25, 50, 75, 100)
SKEW_MS: Final = 5.0
ENDINGS: Final = ("settled", "retry", "snoozed", "takeover", "cancelled")
WAITING: Final = ("queued", "scheduled", "waiting")
LABELS: Final = {
    "retry": "failed, will be tried again",
    "snoozed": "snoozed, no attempt charged",
    "takeover": "worker lost, taken over",
}


class Moment(Struct, frozen=True):
    """One line of `timeline`, its time in ms since the event was accepted; a claim lasts until its end."""

    what: str
    at_ms: float
    step: str | None
    attempt: int | None
    ms: float
    detail: dict[str, Any]
    waited_ms: float = 0.0

    @property
    def end_ms(self) -> float:
        return self.at_ms + self.ms


class Bar(Struct, frozen=True):
    kind: str
    x: float
    width: float


class Row(Struct, frozen=True):
    """`at` and `took` are ready to be read; `took` is empty where nothing lasted."""

    kind: str
    label: str
    at: str
    took: str
    bars: list[Bar]
    note: str = ""
    simulated: bool = False
    failed: bool = False


class Scale(Struct, frozen=True):
    """Knots of a piecewise linear scale, from milliseconds to percent of the width."""

    ms: list[float]
    percent: list[float]
    is_cut: bool

    def at(self, ms: float) -> float:
        return round(_between(ms, self.ms, self.percent), 3)

    def back(self, percent: float) -> float:
        return _between(percent, self.percent, self.ms)


class Waterfall(Struct, frozen=True):
    rows: list[Row]
    ticks: list[tuple[int, str]]
    is_cut: bool
    left_out: int


def waterfall(event: Mapping[str, Any], now: datetime) -> Waterfall:
    """Steps and calls side by side as they ran, from acceptance to the end or to `now`."""
    accepted: datetime = event["accepted_at"]
    shown = [_moment(row, accepted) for row in event["timeline"][:ROWS_MAX]]
    now_ms = _since(accepted, event["finished_at"] or now)
    moments = _nested(list(_with_tries(shown, now_ms)))
    end_ms = max([now_ms, 0.001, *(moment.end_ms for moment in moments)])
    drawn = scale([(moment.at_ms, moment.end_ms) for moment in moments], end_ms)
    ticks = [(percent, lasting(drawn.back(percent)) if percent else "0") for percent in TICKS]
    rows = [_row(moment, drawn) for moment in moments]
    if event["status"] in WAITING:
        since_ms = max(moment.end_ms for moment in moments)
        bar = _bar("wait", since_ms, now_ms, drawn)
        rows.append(Row("now", event["status"], lasting(since_ms), lasting(now_ms - since_ms), [bar]))
    return Waterfall(rows, ticks, drawn.is_cut, len(event["timeline"]) - len(shown))


def _moment(moment: view.Moment, accepted: datetime) -> Moment:
    detail = json.decode(json.encode(moment.detail or {}), type=dict[str, Any])
    lasts = moment.what in ("step", "call")
    ms = moment.ms if lasts and moment.ms else 0.0
    return Moment(moment.what, _since(accepted, moment.at), moment.step, moment.attempt, ms, detail)


def _since(accepted: datetime, at: datetime) -> float:
    return max(0.0, (at - accepted).total_seconds() * 1000)


def _with_tries(moments: Sequence[Moment], now_ms: float) -> Iterator[Moment]:
    """The same; claims last until they ended, or until now."""
    free_ms = 0.0
    for n, moment in enumerate(moments):
        if moment.what != "claimed":
            free_ms = moment.at_ms if moment.what == "replayed" else free_ms
            yield moment
            continue
        end_ms = next((later.at_ms for later in moments[n + 1 :] if later.what in ENDINGS), now_ms)
        waited_ms = max(0.0, moment.at_ms - free_ms)
        yield replace(moment, ms=max(0.0, end_ms - moment.at_ms), waited_ms=waited_ms)
        free_ms = end_ms


def _nested(moments: Sequence[Moment]) -> list[Moment]:
    """Calls below the step that made them."""
    steps = [moment for moment in moments if moment.what == "step"]

    def order(moment: Moment) -> tuple[float, str, float]:
        if moment.what != "call":
            return moment.at_ms, moment.step or "", -1.0
        owners = [step.at_ms for step in steps if step.step == moment.step and step.at_ms <= moment.at_ms + SKEW_MS]
        return max(owners, default=moment.at_ms), moment.step or "", moment.at_ms

    return sorted(moments, key=order)


def _row(moment: Moment, drawn: Scale) -> Row:
    at, took = lasting(moment.at_ms) if moment.at_ms else "0", lasting(moment.ms)
    match moment.what:
        case "claimed":
            bars = [_bar("wait", moment.at_ms - moment.waited_ms, moment.at_ms, drawn), _bar_of("try", moment, drawn)]
            return Row("try", f"attempt {moment.attempt}", at, took, bars, f"waited {lasting(moment.waited_ms)}")
        case "call":
            call = convert(moment.detail, Call)
            bar = _bar_of("call" if call.ok else "failed", moment, drawn)
            note = " · ".join(filter(None, (call.model, "" if call.outcome == "ok" else call.text)))
            return Row("call", call.prompt_version, at, took, [bar], note, bool(call.simulated), not call.ok)
        case "step":
            failed = moment.detail.get("state") == "failed"
            bar = _bar_of("failed" if failed else "step", moment, drawn)
            note = moment.detail.get("error", "failed") if failed else ""
            return Row("step", moment.step or "", at, took, [bar], note, failed=failed)
        case _:
            return _mark(moment, at, drawn)


def _mark(moment: Moment, at: str, drawn: Scale) -> Row:
    outcome = str(moment.detail.get("outcome") or "") if moment.what == "settled" else ""
    error = moment.detail.get("error")
    message = str(error.get("message") or "") if isinstance(error, dict) else ""
    label = outcome or LABELS.get(moment.what, moment.what)
    failed = bool(message) and moment.what != "snoozed"
    return Row("mark", label, at, "", [_bar_of(outcome or "mark", moment, drawn)], message, failed=failed)


class Call(Struct, frozen=True):
    prompt: str
    version: int
    provider: str | None
    model: str | None
    tokens_in: int | None
    tokens_out: int | None
    cost_usd: float
    outcome: str
    simulated: bool | None
    cause: str | None = None
    step: str = ""
    ms: float | None = None

    @property
    def prompt_version(self) -> str:
        return f"{self.prompt}@{self.version}"

    @property
    def ok(self) -> bool:
        return self.outcome in ("ok", "open", "recalled")

    @property
    def text(self) -> str:
        return f"{self.outcome} ({self.cause})" if self.cause else self.outcome


def calls(event: Mapping[str, Any]) -> list[Call]:
    rows = [row for row in event["timeline"] if row.what == "call" and row.detail["outcome"] != "recalled"]
    return [convert({**row.detail, "step": row.step, "ms": row.ms}, Call) for row in rows[:ROWS_MAX]]


def _bar_of(kind: str, moment: Moment, drawn: Scale) -> Bar:
    return _bar(kind, moment.at_ms, moment.end_ms, drawn)


def _bar(kind: str, begin_ms: float, end_ms: float, drawn: Scale) -> Bar:
    x = drawn.at(begin_ms)
    return Bar(kind, x, round(drawn.at(end_ms) - x, 3))


def scale(work: Sequence[Span], end_ms: float) -> Scale:
    """A quiet stretch is drawn no longer than all the work together."""
    edges = sorted({0.0, end_ms, *(edge for span in work for edge in span)})
    stretches = [
        (right - left, any(begin <= left and right <= end for begin, end in work)) for left, right in pairwise(edges)
    ]
    total = sum(length for length, is_busy in stretches if is_busy)
    drawn = [length if is_busy or not total else min(length, total) for length, is_busy in stretches]
    percent = [100 * length / (sum(drawn) or 1.0) for length in accumulate(drawn, initial=0.0)]
    return Scale(edges, percent, is_cut=sum(drawn) < 0.999 * end_ms)


def _between(value: float, measured: Sequence[float], wanted: Sequence[float]) -> float:
    left = min(max(bisect_right(measured, value) - 1, 0), len(measured) - 2)
    width = measured[left + 1] - measured[left]
    share = (value - measured[left]) / width if width else 0.0
    return wanted[left] + min(max(share, 0.0), 1.0) * (wanted[left + 1] - wanted[left])
