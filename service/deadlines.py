"""Time limits of many futures: one timer for all that have the same, since one each costs as much as their writes."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any, Final

CLEARED_MIN: Final = 1000


class Deadlines:
    """A future that is held is done within its limit: by others, or with what `late` gives for that limit."""

    def __init__(self, late: Callable[[float], Exception]) -> None:
        self._late: Final = late
        self._held: Final[dict[float, _Held]] = {}

    def hold(self, future: "asyncio.Future[Any]", limit_s: float) -> None:
        held = self._held.get(limit_s)
        if held is None:
            held = self._held[limit_s] = _Held(limit_s, self._late)
        held.add(future)


class _Held:
    """The futures of one limit, in the order in which their time is up. While there are any, a timer runs."""

    def __init__(self, limit_s: float, late: Callable[[float], Exception]) -> None:
        self._limit_s: Final = limit_s
        self._late: Final = late
        self._futures: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._clear_at = CLEARED_MIN

    def add(self, future: "asyncio.Future[Any]") -> None:
        futures, loop = self._futures, future.get_loop()
        while futures and futures[0][1].done():
            futures.popleft()
        ends_at = loop.time() + self._limit_s
        futures.append((ends_at, future))
        if self._timer is None:
            self._start(loop, ends_at)
        if len(futures) >= self._clear_at:  # one that takes its time does not keep those behind it
            self._futures = deque(each for each in futures if not each[1].done())
            self._clear_at = max(CLEARED_MIN, 2 * len(self._futures))

    def _start(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        self._timer = loop.call_at(at, self._look, loop, context=Context())

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        while self._futures:
            ends_at, future = self._futures[0]
            if not future.done() and ends_at > now:
                self._start(loop, ends_at)
                return
            self._futures.popleft()
            if not future.done():
                future.set_exception(self._late(self._limit_s))
