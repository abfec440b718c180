"""Claims that end without an outcome although their worker lives, and why: the floor counts them.

A claim that ends so is handed back by `unknown_claims`, and counts as a crash. One whose reply from Postgres got lost
was never run: that is an outage, and no crash.
"""

import time
from collections.abc import Iterable
from typing import Final, TypeVar
from uuid import UUID

from service.core.errors import kind_of, text_of
from workers.engine.claim import Claimed
from workers.engine.retry import encoded

K = TypeVar("K")
V = TypeVar("V")

KEPT_S: Final = 60.0
KEPT_MAX: Final = 10_000
UNSETTLED: Final = "the run ended and its worker could not record how"


class Unsettled:
    """Of one worker; in bounds, since each claim that is left out is only handed back without its reason."""

    def __init__(self) -> None:
        self._why: Final[dict[tuple[UUID, int], tuple[str, float]]] = {}
        self._reply_lost: Final[dict[UUID, float]] = {}

    def note(self, claimed: Claimed, error: BaseException | None) -> None:
        """The run of this claim is over, and nothing of it was stored."""
        kind, text = ("Unsettled", "") if error is None else (kind_of(error), f": {kind_of(error)}: {text_of(error)}")
        if len(self._why) < KEPT_MAX:
            described = encoded(kind, f"{UNSETTLED}{text}", claimed.claimed_at).decode()
            self._why[claimed.event_id, claimed.claim] = described, time.monotonic()

    def reply_lost(self, ids: Iterable[UUID]) -> None:
        """Postgres may have given out claims of these events, and its reply did not arrive."""
        now = time.monotonic()
        for event_id in ids:
            if len(self._reply_lost) < KEPT_MAX:
                self._reply_lost[event_id] = now

    @property
    def excused(self) -> list[UUID]:
        """The events whose claims count as no crash."""
        _prune(self._reply_lost, dict(self._reply_lost))
        return list(self._reply_lost)

    def reasons(self) -> tuple[list[UUID], list[int], list[str]]:
        """Events, claims and errors, side by side."""
        _prune(self._why, {key: at for key, (_, at) in self._why.items()})
        return ([key[0] for key in self._why], [key[1] for key in self._why], [why for why, _ in self._why.values()])

    def forget(self, event_id: UUID, claim: int) -> None:
        """It is handed back."""
        self._why.pop((event_id, claim), None)


def _prune(noted: dict[K, V], since: dict[K, float]) -> None:
    """What nothing came of: the claim was somebody else's, or there was none."""
    oldest = time.monotonic() - KEPT_S
    for key in [known for known, at in since.items() if at < oldest]:
        del noted[key]
