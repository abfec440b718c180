"""A time limit for user code: its clock stands while that code waits for us.

Postgres that stands still, a lease that may be lost, a model's turn, a resource that is being opened: such waits have
bounds of their own and charge nobody, so they are no time of the user's.
"""

import asyncio
from contextvars import Context, ContextVar
from types import TracebackType
from typing import Final

from service.core.deadlines import Deadlines

_LIMITS: Final[ContextVar[tuple["TimeLimit", ...]]] = ContextVar("limits", default=())


class TimeLimit:
    """`async with TimeLimit(seconds)`: cancels the block when that much time has gone by outside of `our_wait()`.

    The block then raises TimeoutError, and `expired` tells it from one of the user's own. The limit holds for the
    tasks that the block starts, too: while one of them waits for us, the clock stands for all.

    As asyncio.timeout does, whose object can't be told to stand still: it counts the requests to cancel its task.
    `deadlines` are those of many that have the same limit.
    """

    expired = False

    def __init__(self, limit_s: float | None, deadlines: "Deadlines[TimeLimit] | None" = None) -> None:
        self._limit_s = limit_s
        self._deadlines = deadlines
        self._held = False  # by the deadlines, which will look
        self._waits = 0  # that are under way
        self._waiting_since = self._waited_s = 0.0
        self._handle: asyncio.Handle | None = None
        self._over = False
        self._within: set[TimeLimit] | None = None  # those of the block's own blocks and tasks

    @property
    def waited_s(self) -> float:
        """For how long the clock has stood, so far."""
        return self._waited_s + (self._loop.time() - self._waiting_since if self._waits else 0.0)

    async def __aenter__(self) -> "TimeLimit":
        task = asyncio.current_task()
        assert task is not None, "a time limit holds for a task"
        self._task, self._cancelling = task, task.cancelling()
        self._loop = task.get_loop()
        self._begun = self._loop.time()
        self._outer = _LIMITS.get()
        for outer in self._outer:
            outer._take_in(self)
        _LIMITS.set((*self._outer, self))
        if self._deadlines is not None and self._limit_s is not None:
            self._held = True
            self._deadlines.hold(self, self._limit_s)
        else:
            self._look()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        for outer in self._outer:
            outer._let_out(self)
        _LIMITS.set(self._outer)  # by no token: a run that is thrown away ends in another context
        if self._handle is not None:
            self._handle.cancel()
        task = self._task
        del self._task  # the deadlines may hold this object for a while yet
        if self.expired and task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def done(self) -> bool:
        return self._over

    def late(self) -> None:
        """Its time would be up, had nobody waited for us."""
        self._held = False
        self._look()

    def _take_in(self, limit: "TimeLimit") -> None:
        self._within = self._within or set()
        self._within.add(limit)

    def _let_out(self, limit: "TimeLimit") -> None:
        if self._within is not None:
            self._within.discard(limit)

    def lift(self) -> None:
        """The block, and those in it, may take any time from now on: somebody has stopped the worker in a debugger."""
        for limit in (self, *(self._within or ())):
            limit._limit_s = None
            if limit._handle is not None:
                limit._handle.cancel()
                limit._handle = None

    def stop(self) -> None:
        if not self._waits:
            self._waiting_since = self._loop.time()
        self._waits += 1

    def go_on(self) -> None:
        self._waits -= 1
        if not self._waits:
            self._waited_s += self._loop.time() - self._waiting_since
            if self._handle is None and not self._held:  # it has run out meanwhile, or was not to be looked at
                self._look()

    def _look(self) -> None:
        """Ends the block where its time is up, else looks again when it may be; while the clock stands `go_on` does.

        Not at once: a block that is left before its next await is not cancelled behind its end.
        """
        self._handle = None
        if self._limit_s is None or self._over or self._waits or self.expired:
            return
        ends_at = self._begun + self._limit_s + self._waited_s
        # A timer that was cancelled holds its context for as long as the loop likes: none of the run's.
        if self._loop.time() >= ends_at:
            self._handle = self._loop.call_soon(self._expire, context=Context())
        else:
            self._handle = self._loop.call_at(ends_at, self._look, context=Context())

    def _expire(self) -> None:
        self.expired = True
        self._task.cancel()


def shared_limits() -> Deadlines[TimeLimit]:
    """One object that holds the time limits of many runs."""
    return Deadlines(lambda limit, _: limit.late())


class our_wait:  # noqa: N801 - read as `with our_wait():`
    """While it is open, the clocks of the time limits around it stand."""

    __slots__ = ("_limits",)

    def __enter__(self) -> None:
        self._limits = _LIMITS.get()
        for limit in self._limits:
            limit.stop()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for limit in self._limits:
            limit.go_on()
