"""Shares of a queue: a caller who fills it leaves places for the others."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Generic, TypeVar

from service.core.errors import OverLimit, Unavailable
from service.core.postgres_errors import SENTENCES, Reason

T = TypeVar("T")

LEFT: Final = 8  # one place in so many is left for the next caller


class QueueShares(Generic[T]):
    """A caller may have all places but an eighth, which is the next one's. Of n callers with items in the queue each
    may have one part of n + 1 of its places. Who has none may always come.

    The callers are counted only when it is asked, which is when the queue is crowded: until then nobody lacks a place.
    """

    def __init__(self, caller_of: Callable[[T], str] | None) -> None:
        self._caller_of: Final = caller_of
        self._by_caller: Counter[str] | None = None

    def take(self, items: Sequence[T], waiting: Iterable[T], capacity: int, reason: Reason | None) -> None:
        """So many of the `capacity` for one caller's `items`. Raises OverLimit where that is more than its share; but
        Unavailable where the queue is long since Postgres, for this `reason`, takes nothing: no caller can help that.
        """
        if self._caller_of is None:
            return
        if self._by_caller is None:
            self._by_caller = Counter(map(self._caller_of, waiting))
        caller = self._caller_of(items[0])
        held = self._by_caller[caller]
        callers = len(self._by_caller) + (held == 0)
        share = capacity - capacity // LEFT if callers == 1 else capacity // (callers + 1)
        if held and held + len(items) > share:
            if reason is not None:
                raise Unavailable(f"{held} events of the tenant {caller} wait to be stored: {SENTENCES[reason]}")
            message = f"{held} events of the tenant {caller} wait to be stored, which is its share of the queue"
            raise OverLimit("queue", message)
        self._by_caller[caller] += len(items)

    def forget(self) -> None:
        """Items have left the queue: count anew when asked."""
        self._by_caller = None
