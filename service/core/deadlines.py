"""Time limits of many things: one timer for all that have the same, since one each costs as much as their work."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Final, Generic, Protocol, TypeVar

CLEARED_MIN: Final = 1000


class Timed(Protocol):
    def done(self) -> bool: ...


T = TypeVar("T", bound=Timed)
R = TypeVar("R")


class FutureGroup(Generic[R]):
    """The futures of items that were put in one call: they are late together."""

    def __init__(self, futures: Sequence["asyncio.Future[R]"]) -> None:
        self.futures: Final = futures

    def done(self) -> bool:
        return all(future.done() for future in self.futures)


class Deadlines(Generic[T]):
    """Calls `late` with each item that is not done within its limit, and with that limit, in seconds."""

    def __init__(self, late: Callable[[T, float], object]) -> None:
        self._late: Final = late
        self._held: Final[dict[float, _Held[T]]] = {}

    def hold(self, timed: T, limit_s: float) -> None:
        """From now on, on the loop that runs."""
        held = self._held.get(limit_s)
        if held is None:
            held = self._held[limit_s] = _Held(limit_s, self._late)
        held.add(timed)


class _Held(Generic[T]):
    """The items of one limit, in the order in which their time is up. While there are any, a timer runs.

    An item that is done is dropped when its time would have been up, or earlier where there are many.
    """

    def __init__(self, limit_s: float, late: Callable[[T, float], object]) -> None:
        self._limit_s: Final = limit_s
        self._late: Final = late
        self._timed: deque[tuple[float, T]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._clear_at = CLEARED_MIN

    def add(self, timed: T) -> None:
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._limit_s
        self._timed.append((ends_at, timed))
        if self._timer is None:
            self._start(loop, ends_at)
        if len(self._timed) >= self._clear_at:
            self._timed = deque(pair for pair in self._timed if not pair[1].done())
            self._clear_at = max(CLEARED_MIN, 2 * len(self._timed))

    def _start(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        self._timer = loop.call_at(at, self._look, loop, context=Context())

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        while self._timed:
            ends_at, timed = self._timed[0]
            if not timed.done() and ends_at > now:
                self._start(loop, ends_at)
                return
            self._timed.popleft()
            if not timed.done():
                self._late(timed, self._limit_s)
