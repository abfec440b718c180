"""How an event ends, and how one claim ended: decided in one place, matched in one place (workers/engine/settle.py)."""

from collections.abc import Sequence
from typing import Final, Literal

from msgspec import Struct

Status = Literal["queued", "scheduled", "running", "waiting", "succeeded", "dead", "cancelled"]
Reason = Literal[
    "attempts_exhausted", "rejected", "wiring", "crash_loop", "invalid", "too_large", "journal_mismatch", "deadline"
]
"""Why an event is a dead letter."""

ENDED: Final = ("succeeded", "dead", "cancelled")
"""The statuses of an event that is over."""


class Done(Struct, frozen=True):
    """The pipeline gave its result."""

    result: bytes


class Later(Struct, frozen=True):
    """Not now, but `wait_s` seconds after this is stored: `charged` says whether it cost the event one of its attempts.

    Uncharged, it is one put-off more in a row; where it was `missed`, of those that are not all free; where it has its
    `turn`, it does not count. `waits_for`: models, provider/model, whose recovery brings it forward.
    """

    wait_s: float
    cause: str
    charged: bool
    error: bytes | None = None
    put_off: Literal["away", "missed", "turn"] = "away"
    waits_for: Sequence[str] = ()


class Dead(Struct, frozen=True):
    """Never: the error is `{kind, message, step, at, where}`."""

    reason: Reason
    error: bytes


class HandedBack(Struct, frozen=True):
    """The worker stops: the event waits for another one, uncharged."""


Outcome = Done | Later | Dead | HandedBack
