"""How times, sums and JSON read on a page."""

from datetime import datetime
from typing import Any, Final

import msgspec

PRETTY_MAX: Final = 100_000
UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def utc(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03d} UTC"


def ago(at: datetime, now: datetime) -> str:
    """`3 s ago`, `in 2 min`."""
    seconds = (now - at).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"{_coarse(seconds)} ago" if seconds > 0 else f"in {_coarse(-seconds)}"


def _coarse(seconds: float) -> str:
    size, unit = next((size, unit) for size, unit in UNITS if seconds >= size)
    return f"{int(seconds // size)} {unit}"


def lasting(ms: float) -> str:
    """`<0.01 ms`, `0.04 ms`, `4.2 ms`, `12 ms`, `1.25 s`, `3 min 20 s`, `2 h 5 min`."""
    if ms < 0.005:
        return "<0.01 ms"
    if ms < 999.5:
        places = 2 if ms < 0.995 else 1 if ms < 9.95 else 0
        return f"{ms:.{places}f} ms"
    if ms < 59_995:
        return f"{ms / 1000:.2f} s"
    return _two_units(round(ms / 1000))


def _two_units(seconds: int) -> str:
    at = next(at for at, (size, _) in enumerate(UNITS) if seconds >= size)
    (size, unit), (next_size, next_unit) = UNITS[at], UNITS[at + 1]
    rest = seconds % size // next_size
    return f"{seconds // size} {unit}" + (f" {rest} {next_unit}" if rest else "")


def dollars(usd: float) -> str:
    """As many places as it takes to see something."""
    return f"${usd:,.2f}" if usd == 0 or usd >= 10 else f"${usd:,.4f}" if usd >= 0.01 else f"${usd:.6f}"


def pretty(content: Any) -> str:
    """JSON for people; of very long ones the beginning."""
    text = msgspec.json.format(msgspec.json.encode(content), indent=2).decode()
    return text if len(text) <= PRETTY_MAX else f"{text[:PRETTY_MAX]}\n… {len(text) - PRETTY_MAX:,} more characters"
