"""Where a moment stands on the waterfall: waits much longer than the work are drawn short."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise

from msgspec import Struct

Span = tuple[float, float]


class Scale(Struct, frozen=True):
    """Knots of a piecewise linear scale, from milliseconds to percent of the width."""

    ms: list[float]
    percent: list[float]
    is_cut: bool

    def at(self, ms: float) -> float:
        return round(_between(ms, self.ms, self.percent), 3)

    def back(self, percent: float) -> float:
        return _between(percent, self.percent, self.ms)


def scale(work: Iterable[Span], end_ms: float) -> Scale:
    """A quiet stretch is drawn no longer than all the work together."""
    busy = list(_merged(work, end_ms))
    total = sum(end - begin for begin, end in busy)
    edges = sorted({0.0, end_ms, *(edge for span in busy for edge in span)})
    drawn = [_drawn(span, busy, total) for span in pairwise(edges)]
    whole = sum(drawn) or 1.0
    percent = [100 * length / whole for length in accumulate(drawn, initial=0.0)]
    return Scale(edges, percent, is_cut=sum(drawn) < 0.999 * end_ms)


def _merged(work: Iterable[Span], end_ms: float) -> Iterator[Span]:
    open_span: Span | None = None
    for begin, end in sorted((max(0.0, begin), min(end, end_ms)) for begin, end in work):
        if end <= begin:
            continue
        if open_span is None or begin > open_span[1]:
            if open_span is not None:
                yield open_span
            open_span = (begin, end)
        else:
            open_span = (open_span[0], max(open_span[1], end))
    if open_span is not None:
        yield open_span


def _drawn(span: Span, busy: Sequence[Span], total: float) -> float:
    length = span[1] - span[0]
    is_busy = any(begin <= span[0] and span[1] <= end for begin, end in busy)
    return length if is_busy or not total else min(length, total)


def _between(value: float, given: Sequence[float], wanted: Sequence[float]) -> float:
    if len(given) < 2:
        return wanted[0]
    left = min(max(bisect_right(given, value) - 1, 0), len(given) - 2)
    width = given[left + 1] - given[left]
    share = (value - given[left]) / width if width else 0.0
    return wanted[left] + min(max(share, 0.0), 1.0) * (wanted[left + 1] - wanted[left])
