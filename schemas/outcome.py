"""How an event ends, and how one claim ended: decided in one place, matched in one place (workers/engine/settle.py)."""

from collections.abc import Sequence
from typing import Final, Literal

from msgspec import Struct

Status = Literal["queued", "scheduled", "running", "waiting", "succeeded", "dead", "cancelled"]
Reason = Literal[
    "attempts_exhausted", "rejected", "wiring", "crash_loop", "invalid", "too_large", "journal_mismatch", "deadline"
]
"""Why an event is a dead letter."""
SnoozeKind = Literal["outage", "doubtful", "rate_limited"]
"""Why an event is tried again, uncharged.

`outage`: something outside is away; it counts as one snooze more in a row. `doubtful`: the event may be the cause,
so that only so many in a row are uncharged. `rate_limited`: it has a time of its own to come again; it does not count.
"""

ENDED: Final = ("succeeded", "dead", "cancelled")
"""The statuses of an event that is over."""


class Done(Struct, frozen=True):
    """The pipeline gave its result."""

    result: bytes


class Later(Struct, frozen=True):
    """Not now, but `wait_s` seconds after this is stored: `charged` says whether it cost the event one of its attempts.

    Uncharged, it is a snooze, of a kind. `blocked_by`: models, provider/model, whose recovery brings the event forward.
    """

    wait_s: float
    cause: str
    charged: bool
    error: bytes | None = None
    snooze: SnoozeKind = "outage"
    blocked_by: Sequence[str] = ()


class Dead(Struct, frozen=True):
    """Never: the error is `{kind, message, step, at, where}`."""

    reason: Reason
    error: bytes


class HandedBack(Struct, frozen=True):
    """The worker stops: the event waits for another one, uncharged."""


Outcome = Done | Later | Dead | HandedBack
