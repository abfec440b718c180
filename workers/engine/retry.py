"""Whose failure it was that a run did not succeed, and when the event comes again.

What became of no run (its worker was lost, its deadline passed) the sweeper decides, in sql/queries/sweeper.sql.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from msgspec import json

from schemas.outcome import Dead, Later, Outcome, SnoozeKind
from schemas.text import storable
from service.core.errors import Outage, Reject, Unavailable, WiringError, kind_and_text, kind_of, text_of
from service.core.servers import backoff_s
from service.core.traces import causes, location_of
from workers.engine.claim import Claimed
from workers.kit import Retry
from workers.kit.failures import OUTAGES, as_outage, deciding, leaves, original
from workers.kit.memory import Facts, JournalMismatch, TooLarge
from workers.models.call_log import DaySpent
from workers.models.client import LlmRefused

BUDGET: Final = "budget"
UNKNOWN_TYPE_S: Final = 10.0
# What passed another release's door may fit again when this one has been replaced: ten minutes are enough for that.
MISFITS_MAX: Final = 60
MESSAGE_MAX: Final = 2000
CAUSE_MAX: Final = 200
MEMBERS_MAX: Final = 5
# What says nothing, or nothing that helps, of itself.
EXPLAINED: Final[dict[type[BaseException], str]] = {
    asyncio.CancelledError: "it awaited what had been cancelled, or cancelled itself; nobody has cancelled the event",
    SystemExit: "user code ended the process (sys.exit); only this attempt has ended",
    KeyboardInterrupt: "user code raised KeyboardInterrupt; only this attempt has ended",
    TimeoutError: "a time limit in the user's code, or in a library that it calls, ran out",
}


log = logging.getLogger("callboard.executor")


class Unreadable(Exception):
    """The event, or what it follows, can't be decoded by this worker's release. Its cause says why."""


def judged(error: BaseException, claimed: Claimed, retry: Retry, facts: Facts) -> Outcome:
    """What becomes of an event whose run raised this: decided, and said in the log. Raises nothing."""
    try:
        outcome = after(error, claimed, retry, facts)
    except Exception as bug:
        log.error("event %s: a bug in judging an error", claimed.event_id, exc_info=bug)
        described = encoded(kind_of(error), "what it says can't be read, see the log of the worker", facts.now())
        outcome = charged(claimed, retry, Facts(), described, kind_of(error))
    decides = original(deciding(error))
    what, where = kind_of(decides), location_of(decides) or location_of(error) or "no code of yours"
    if isinstance(outcome, Dead):
        # Never the error's text, which may quote the event; where attempts are spent, its traceback.
        trace = error if outcome.reason == "attempts_exhausted" else None
        line = "event %s is dead after attempt %d (%s): %s in %s"
        log.warning(line, claimed.event_id, claimed.attempt, outcome.reason, what, where, exc_info=trace)
    else:
        log.info("event %s, attempt %d: %s in %s", claimed.event_id, claimed.attempt, what, where)
    return outcome


def after(error: BaseException, claimed: Claimed, retry: Retry, facts: Facts) -> Outcome:
    """An outage snoozes the event, uncharged; a refusal is final; anything else is one of its attempts.

    Of a group one member decides, see `deciding`.
    """
    decides = deciding(error)
    if isinstance(decides, Unavailable):
        decides = as_outage(decides)
    described = describe(error, decides, failed_step(facts, error), facts.now())
    match decides:
        case Outage() if decides.max_uncharged is None or claimed.doubtful_snoozes < decides.max_uncharged:
            return _snooze(decides, claimed, described)
        case DaySpent():
            return Later(decides.wait_s, text_of(decides), charged=False, error=described, blocked_by=[BUDGET])
        case Reject() | LlmRefused():
            return Dead("rejected", described)
        case WiringError() | TooLarge():
            return Dead("wiring" if isinstance(decides, WiringError) else "too_large", described)
        case JournalMismatch():
            return Dead("journal_mismatch", described)
        case Unreadable() if claimed.snoozes < MISFITS_MAX:
            cause = f"this worker's release can't read it: {text_of(decides.__cause__ or decides)}"
            return Later(UNKNOWN_TYPE_S, cause, charged=False, error=described)
        case Unreadable():
            return Dead("invalid", described)
    return charged(claimed, retry, facts, described, text_of(decides, CAUSE_MAX))


def charged(claimed: Claimed, retry: Retry, facts: Facts, described: bytes, cause: str) -> Outcome:
    """One of the event's attempts: it comes again after a while, or is dead where this was the last."""
    number = attempt(claimed, facts)
    if number >= retry.attempts:
        return Dead("attempts_exhausted", described)
    return Later(backoff_s(number - 1, retry.base_s, retry.cap_s), cause, charged=True, error=described)


def _snooze(outage: Outage, claimed: Claimed, described: bytes) -> Later:
    """Waits double, but for one whose end is known."""
    kind: SnoozeKind = "outage" if outage.max_uncharged is None else "doubtful"
    if outage.known_delay:
        kind = "rate_limited"
    wait_s = outage.after_s * (1.0 if outage.known_delay else 2.0 ** min(claimed.snoozes, 16))
    wait_s = min(wait_s, outage.wait_max_s)
    return Later(wait_s, outage.cause, charged=False, error=described, snooze=kind, blocked_by=outage.blocked_by)


def attempt(claimed: Claimed, facts: Facts) -> int:
    """Progress, a step that no earlier try had finished, starts the count anew."""
    return 1 if facts.progress else claimed.attempt


def failed_step(facts: Facts, error: BaseException) -> str | None:
    """The step that raised it (another may have failed, and been collected); where none did, what was cut off last."""
    related = {id(member) for member in _related(error)}
    failed = next((step for step, raised in facts.failed.items() if id(original(raised)) in related), None)
    return failed or next((step.step for step in reversed(facts.steps) if step.state == "cancelled"), None)


def _related(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and the members of each: by identity, since `__eq__` is the user's."""
    for cause in causes(error):
        yield original(cause)
        yield from leaves(cause)


def unknown_type(claimed: Claimed) -> Later:
    """The sender is newer than this worker: the event waits for one that knows its type."""
    what = f'type "{claimed.type}"' if claimed.follow_up is None else f'pipeline "{claimed.follow_up}"'
    cause = f"this worker does not know the {what}"
    error = encoded("UnknownType", f"{cause}: deploy a release that has it.", datetime.now(UTC))
    return Later(UNKNOWN_TYPE_S, cause, charged=False, error=error)


def describe(error: BaseException, decides: BaseException, step: str | None, at: datetime) -> bytes:
    """The contract's error: `{kind, message, step, at, where}`. A group is described by the member that decides, and
    names the others."""
    shown = original(decides.__cause__ or decides if isinstance(decides, Unreadable) else decides)
    several = isinstance(original(error), BaseExceptionGroup) and not isinstance(decides, OUTAGES)
    others = [leaf for leaf in leaves(error) if leaf is not shown] if several else []
    message = _message(shown) + _named(others)
    return encoded(kind_of(shown), storable(message, MESSAGE_MAX), at, step, location_of(shown) or location_of(error))


def encoded(kind: str, message: str, at: datetime, step: str | None = None, where: str | None = None) -> bytes:
    return json.encode({"kind": kind, "message": message, "step": step, "at": at, "where": where})


def _message(error: BaseException) -> str:
    text, kind = text_of(error, MESSAGE_MAX), kind_of(error)
    explained = next((explanation for known, explanation in EXPLAINED.items() if type(error) is known), None)
    if explained is None:
        return text
    return explained if text == kind else f"{text}: {explained}" if isinstance(error, SystemExit) else text


def _named(others: Sequence[BaseException]) -> str:
    if not others:
        return ""
    named = [
        kind_and_text(other, CAUSE_MAX) + (f" ({where})" if (where := location_of(other)) else "") for other in others
    ]
    more = f"; and {len(named) - MEMBERS_MAX} more" if len(named) > MEMBERS_MAX else ""
    return f" (in a group with {'; '.join(named[:MEMBERS_MAX])}{more})"
