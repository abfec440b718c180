"""Whose failure it was, and when the event comes again: decided here and nowhere else."""

from datetime import datetime
from typing import Final, Literal

import msgspec
from msgspec import json

from schemas.outcome import Dead, Later, Outcome
from service.errors import Outage, Reject, Unavailable
from service.resources import backoff_s
from workers.clients.ledger import DaySpent
from workers.clients.llm import LlmRefused
from workers.engine.claimed import Claimed
from workers.kit import Retry
from workers.kit.memory import Facts, JournalMismatch, TooLarge

PUT_OFF_CAP_S: Final = 600.0
BUDGET: Final = "budget"
UNKNOWN_TYPE_S: Final = 10.0
# What passed another release's door may fit again when this one has been replaced: ten minutes are enough for that.
MISFITS_MAX: Final = 60
MESSAGE_MAX: Final = 2000


def after(error: Exception, claimed: Claimed, retry: Retry, facts: Facts) -> Outcome:
    """An outage puts the event off, uncharged; a refusal is final; anything else is one of its attempts."""
    step = failed_step(facts, error)
    if isinstance(error, Unavailable):
        error = Outage(str(error), error.retry_after_s)
    told = describe(error, step, facts.now())
    match error:
        case Outage() if error.free_max is None or claimed.misses < error.free_max:
            return _put_off(error, claimed, told)
        case DaySpent():
            return Later(error.wait_s, str(error), charged=False, error=told, waits_for=[BUDGET])
        case Reject() | LlmRefused():
            return Dead("rejected", told)
        case TooLarge():
            return Dead("too_large", told)
        case JournalMismatch():
            return Dead("journal_mismatch", told)
        case msgspec.ValidationError() if step is None and claimed.put_offs < MISFITS_MAX:
            cause = f"this worker's release can't read it: {error}"
            return Later(UNKNOWN_TYPE_S, cause, charged=False, error=told)
        case msgspec.ValidationError() if step is None:
            return Dead("invalid", told)
        case _ if attempt(claimed, facts) >= retry.attempts:
            return Dead("attempts_exhausted", told)
        case _:
            wait_s = backoff_s(attempt(claimed, facts) - 1, retry.base_s, retry.cap_s)
            return Later(wait_s, str(error)[:200] or type(error).__name__, charged=True, error=told)


def _put_off(outage: Outage, claimed: Claimed, told: bytes) -> Later:
    """Waits double, but for one whose end is known."""
    how: Literal["away", "missed", "turn"] = "turn" if outage.exact else "away" if outage.free_max is None else "missed"
    wait_s = outage.after_s * (1.0 if outage.exact else 2.0 ** min(claimed.put_offs, 16))
    wait_s = min(wait_s, PUT_OFF_CAP_S)
    return Later(wait_s, outage.cause, charged=False, error=told, put_off=how, waits_for=outage.waits_for)


def attempt(claimed: Claimed, facts: Facts) -> int:
    """Progress, a step that no earlier try had finished, starts the count anew."""
    return 1 if facts.progress else claimed.attempt


def failed_step(facts: Facts, error: Exception) -> str | None:
    """The step that raised it (another may have failed, and been collected); where none did, what was cut off last."""
    failed = next((step for step, raised in facts.failed.items() if raised in (error, error.__cause__)), None)
    return failed or next((each.step for each in reversed(facts.steps) if each.state == "cancelled"), None)


def unknown_type(claimed: Claimed) -> Later:
    """The sender is newer than this worker: the event waits for one that knows its type."""
    what = f'type "{claimed.type}"' if claimed.reaction is None else f'pipeline "{claimed.reaction}"'
    return Later(UNKNOWN_TYPE_S, f"this worker does not know the {what}", charged=False)


def describe(error: Exception, step: str | None, at: datetime) -> bytes:
    """The contract's error: `{kind, message, step, at}`."""
    message = str(error)[:MESSAGE_MAX].replace("\0", "�") or type(error).__name__
    told = {"kind": type(error).__name__, "message": message, "step": step, "at": at}
    return json.encode(told)
