"""A time limit for user code: its clock stands while that code waits for us.

Postgres that stands still, a lease that may be lost, a model's turn, a resource that is being opened: such waits have
bounds of their own and charge nobody, so they are no time of the user's.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from types import TracebackType
from typing import Final

_LIMITS: Final[ContextVar[tuple["TimeLimit", ...]]] = ContextVar("limits", default=())


class TimeLimit:
    """`async with TimeLimit(seconds)`: cancels the block when that much time has gone by outside of `our_wait()`.

    The block then raises TimeoutError, and `expired` tells it from one of the user's own. The limit holds for the
    tasks that the block starts, too: while one of them waits for us, the clock stands for all.
    """

    def __init__(self, limit_s: float | None) -> None:
        self._limit_s = limit_s
        self._timeout: Final = asyncio.timeout(None)
        self._waits = 0  # that are under way
        self._waiting_since = self._begun = self._waited_s = 0.0
        self._handle: asyncio.TimerHandle | None = None
        self._over = False
        self._within: Final[set[TimeLimit]] = set()  # those of the block's own blocks and tasks

    @property
    def expired(self) -> bool:
        return self._timeout.expired()

    @property
    def waited_s(self) -> float:
        """For how long the clock has stood, so far."""
        now = asyncio.get_running_loop().time()
        return self._waited_s + (now - self._waiting_since if self._waits else 0.0)

    async def __aenter__(self) -> "TimeLimit":
        await self._timeout.__aenter__()
        self._begun = asyncio.get_running_loop().time()
        self._outer = _LIMITS.get()
        for outer in self._outer:
            outer._within.add(self)
        _LIMITS.set((*self._outer, self))
        self._look()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        for outer in self._outer:
            outer._within.discard(self)
        _LIMITS.set(self._outer)  # by no token: a run that is thrown away ends in another context
        if self._handle is not None:
            self._handle.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def lift(self) -> None:
        """The block, and those in it, may take any time from now on: somebody has stopped the worker in a debugger."""
        for limit in (self, *self._within):
            limit._limit_s = None
            if limit._handle is not None:
                limit._handle.cancel()
                limit._handle = None

    def stop(self) -> None:
        if not self._waits:
            self._waiting_since = asyncio.get_running_loop().time()
        self._waits += 1

    def go_on(self) -> None:
        self._waits -= 1
        if not self._waits:
            self._waited_s += asyncio.get_running_loop().time() - self._waiting_since
            if self._handle is None:  # it has run out meanwhile, or was not to be looked at
                self._look()

    def _look(self) -> None:
        """Ends the block where its time is up, else looks again when it may be; while the clock stands `go_on` does."""
        self._handle = None
        if self._limit_s is None or self._over or self._waits or self._timeout.expired():
            return
        loop = asyncio.get_running_loop()
        ends_at = self._begun + self._limit_s + self._waited_s
        if loop.time() >= ends_at:
            self._timeout.reschedule(loop.time())
        else:
            # A timer that was cancelled holds its context for as long as the loop likes: none of the run's.
            self._handle = loop.call_at(ends_at, self._look, context=Context())


@contextmanager
def our_wait() -> Iterator[None]:
    """While it is open, the clocks of the time limits around it stand."""
    limits = _LIMITS.get()
    for each in limits:
        each.stop()
    try:
        yield
    finally:
        for each in limits:
            each.go_on()
