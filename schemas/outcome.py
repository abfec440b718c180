"""How one claim ended: decided in one place, matched in one place (workers/engine/settle.py)."""

from datetime import datetime

from msgspec import Struct


class Done(Struct, frozen=True):
    """The pipeline gave its result."""

    result: bytes


class Later(Struct, frozen=True):
    """Not now: `charged` says whether it cost the event one of its attempts."""

    due_at: datetime
    cause: str
    charged: bool
    error: bytes | None = None


class Dead(Struct, frozen=True):
    """Never: the reason is one of the contract's, the error is `{kind, message, step, at}`."""

    reason: str
    error: bytes


class HandedBack(Struct, frozen=True):
    """The worker stops: the event waits for another one, uncharged."""


Outcome = Done | Later | Dead | HandedBack
