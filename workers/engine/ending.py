"""A claim's ending is stored, or something simpler is: what can't be stored must not leave the event without an end."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from schemas.outcome import Dead, Done, HandedBack, Later, Outcome
from service.core.errors import Unavailable, kind_of
from service.core.metrics import Meters
from service.core.servers import POSTGRES_ERRORS, backoff_s
from workers.engine.retry import after, charged, encoded
from workers.engine.settle import Ending, Settler
from workers.kit import Retry
from workers.kit.memory import Facts

SETTLE_TIMEOUT_S: Final = 60.0
PAUSE_S: Final = 1.0
# While others are settled, an outage is not what keeps this one from it.
ALONE_MAX: Final = 3
UNSTORABLE: Final = "what this attempt came to could not be stored"

log = logging.getLogger("callboard.executor")


async def store_ending(settler: Settler, ending: Ending, retry: Retry, meters: Meters) -> bool:
    """Whether the claim still held. Waits for a Postgres that is away as long as it takes.

    Where this ending alone can't be stored, one without its effects is, and then one without any word of it. Raises
    what was wrong with that one, too.
    """
    simpler: tuple[Callable[[Ending, Exception, Retry], Ending] | None, ...] = (None, _without_effects, _bare)
    error: Exception = RuntimeError("nothing was tried")
    for simplify in simpler:
        try:
            ending = ending if simplify is None else simplify(ending, error, retry)
            return await _stored(settler, ending)
        except Exception as refused:  # our own bugs, too: there is a simpler ending
            error = refused
            meters.add("callboard_endings_refused_total", (kind_of(error),))
            if settler.seldom.now():
                log.error("event %s: its ending can't be stored: %s", ending.claimed.event_id, kind_of(error))
            log.debug("event %s: its ending can't be stored", ending.claimed.event_id, exc_info=error)
    raise error


async def _stored(settler: Settler, ending: Ending) -> bool:
    """Tried again with pauses while Postgres is away; raises what is this ending's own."""
    tries, alone, written = 0, 0, settler.written
    while True:
        try:
            return await settler.settle(ending, SETTLE_TIMEOUT_S)
        except (Unavailable, *POSTGRES_ERRORS):
            tries += 1
            alone, written = alone + (settler.written > written), settler.written
            if alone >= ALONE_MAX:
                raise
            await asyncio.sleep(PAUSE_S + backoff_s(tries, PAUSE_S, PAUSE_S * 4))


def _without_effects(ending: Ending, error: Exception, retry: Retry) -> Ending:
    """Its steps and its outcome; where that was a success, a failure. No progress: the next try has to do it again."""
    facts = Facts(steps=ending.facts.steps, begun=ending.facts.begun, started_at=ending.facts.started_at)
    outcome = ending.outcome
    if isinstance(outcome, Done):
        outcome = after(error, ending.claimed, retry, facts)
    return replace(ending, outcome=outcome, facts=facts, follow_ups=())


def _bare(ending: Ending, error: Exception, retry: Retry) -> Ending:
    """Nothing that anybody else has said."""
    facts = Facts(begun=ending.facts.begun, started_at=ending.facts.started_at)
    described = encoded(kind_of(error), f"{UNSTORABLE}: {kind_of(error)}", facts.now())
    outcome: Outcome = ending.outcome
    match outcome:
        case HandedBack():
            pass
        case Dead(reason=reason):
            outcome = Dead(reason, described)
        case Later(charged=False, wait_s=wait_s, snooze=kind):
            outcome = Later(wait_s, UNSTORABLE, charged=False, error=described, snooze=kind)
        case _:
            outcome = charged(ending.claimed, retry, facts, described, UNSTORABLE)
    return replace(ending, outcome=outcome, facts=facts, follow_ups=())
