"""How a call to the outside can fail, and what that means for who waits."""

import math
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, Literal

from service.core.errors import CallboardError, Outage

Outcome = Literal[
    "ok", "timeout", "connection", "server", "malformed", "rate_limited", "setup", "refused", "length", "invalid"
]
# What the ledger says of a call: open while it is under way, unknown where nobody can say whether it will be billed.
Booked = Outcome | Literal["open", "unknown"]
WAIT_CAP_S: Final = 60.0
# Snoozes in a row that are free where nobody else asks, so that nobody can say whose failure it is: with waits of ten
# minutes, a day.
ALONE_MAX: Final = 150
WAIT_S: Final[Mapping[str, float]] = {"rate_limited": 5.0, "setup": 60.0}
SICK: Final = frozenset({"timeout", "connection", "server", "malformed"})
AWAY: Final = SICK | {"rate_limited", "setup"}


class Fault(CallboardError):
    """One call that brought no answer; `after_s` is the wait the other side asked for.

    `free`: it surely costs nothing, since it was not sent or was refused.
    """

    def __init__(self, outcome: Outcome, message: str, after_s: float | None = None, *, free: bool = False) -> None:
        super().__init__(message)
        self.free: Final = free
        self.outcome: Final = outcome
        self.after_s: Final = after_s

    @property
    def away(self) -> bool:
        """Whether somebody else, or the same later, may well answer."""
        return self.outcome in AWAY

    def outage(self, max_uncharged: int | None = None, blocked_by: Sequence[str] = ()) -> Outage:
        wait_s = WAIT_S.get(self.outcome, 1.0) if self.after_s is None else self.after_s
        return Outage(
            str(self), min(wait_s + jitter_s(), WAIT_CAP_S), max_uncharged=max_uncharged, blocked_by=blocked_by
        )


def jitter_s() -> float:
    """Up to a second, so that those who wait for the same thing don't come back together."""
    return random.random()


def outcome_of(status: int) -> Outcome:
    """What an HTTP status that is no success says about who is to blame."""
    if status == 429:
        return "rate_limited"
    if status in (401, 402, 403, 404):
        return "setup"
    if status in (408, 409, 425) or status >= 500:
        return "server"
    return "refused"


def asked_wait_s(headers: Mapping[str, str]) -> float | None:
    """Retry-After in seconds, capped: a number or a date; None where there is none, or it is neither.

    A date counts from the `Date` of the same response: both are of the server's clock; this machine's may be wrong.
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        wait_s = _seconds(value, headers.get("date")) if value else None
        if wait_s is not None:
            return min(max(wait_s * unit_s, 0.0), WAIT_CAP_S)
    return None


def _seconds(value: str, sent_at: str | None) -> float | None:
    try:
        number = float(value)
    except ValueError:
        until, now = _date(value), _date(sent_at or "") or datetime.now(UTC)
        return until.timestamp() - now.timestamp() if until else None
    return number if math.isfinite(number) else None


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
