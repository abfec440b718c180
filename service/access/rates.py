"""Rates: so many events in a second, a minute or an hour. Pure: the clock, in seconds, is the caller's."""

import math
import re
from typing import Final, Literal, cast

from msgspec import Struct

Unit = Literal["s", "min", "h"]

PERIODS_S: Final[dict[Unit, int]] = {"s": 1, "min": 60, "h": 3600}
PERIOD_WORDS: Final[dict[Unit, str]] = {"s": "a second", "min": "a minute", "h": "an hour"}
_RATE: Final = re.compile(r"([1-9][0-9]{0,6})/(s|min|h)")


class Rate(Struct, frozen=True):
    """`count` events in each `unit` on average, and as many at once."""

    count: int
    unit: Unit

    def __str__(self) -> str:
        return f"{self.count}/{self.unit}"

    @property
    def period_s(self) -> int:
        return PERIODS_S[self.unit]

    @property
    def apart_s(self) -> float:
        """The time that the rate gives to one event."""
        return self.period_s / self.count

    def in_words(self) -> str:
        return f"{self.count} event{'s' if self.count > 1 else ''} {PERIOD_WORDS[self.unit]}"


def read_rate(text: str) -> Rate:
    """Raises ValueError where the text is no rate."""
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError("a number of events up to 9999999 for a second, a minute or an hour: 100/s, 100/min, 100/h")
    return Rate(int(match[1]), cast("Unit", match[2]))


class Bucket:
    """The recent events of one rate, by the Generic Cell Rate Algorithm: its state is the time at which all of them
    will have drained. quota.lua is the same in Redis.

    `parts`: this bucket is one of so many that share the rate; it holds one event at least.
    """

    __slots__ = ("drained_at",)

    def __init__(self, drained_at: float = -math.inf) -> None:
        self.drained_at = drained_at

    def room(self, now: float, rate: Rate, parts: int = 1) -> int:
        """How many events fit now."""
        apart_s = rate.apart_s * parts
        free_s = max(rate.period_s, apart_s) - max(0.0, self.drained_at - now)
        return max(0, math.floor(free_s / apart_s + 1e-6))

    def add(self, now: float, rate: Rate, events: int, parts: int = 1) -> None:
        """Adds the events that fit; the others leave no trace."""
        apart_s = rate.apart_s * parts
        drained_at = max(self.drained_at, now) + events * apart_s
        self.drained_at = min(drained_at, now + max(rate.period_s, apart_s))

    def held(self, now: float, rate: Rate, parts: int = 1) -> int:
        """How many events have not drained yet, with the one that drains now."""
        return math.ceil(max(0.0, self.drained_at - now) / (rate.apart_s * parts) - 1e-6)

    def wait_s(self, now: float, rate: Rate, events: int, parts: int = 1) -> float:
        """The seconds until so many events fit, or until the bucket is empty where they never all fit."""
        apart_s = rate.apart_s * parts
        most_s = max(rate.period_s, apart_s)
        return max(0.0, self.drained_at - now + min(events * apart_s, most_s) - most_s)
