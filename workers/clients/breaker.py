"""Circuit breakers on aiobreaker: a failure ratio over a window, a monotonic clock, one probe when half open.

aiobreaker keeps the state machine; what it would get wrong is answered by its storage and by what it is shown.
"""

import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final, Literal, TypeVar

from aiobreaker import CircuitBreaker, CircuitBreakerError, CircuitBreakerState
from aiobreaker.storage.base import CircuitBreakerStorage
from msgspec import Struct

from service.errors import CallboardError
from workers.clients.faults import jitter_s

T = TypeVar("T")

Verdict = Literal["failure", "success", "neutral"]
Clock = Callable[[], float]


class Policy(Struct, frozen=True):
    """Opens for `open_s` when `ratio` of the calls in the last `window_s` failed, `calls_min` of them at least."""

    ratio: float = 0.25
    calls_min: int = 20
    calls_max: int = 200
    window_s: float = 60.0
    open_s: float = 10.0


class BreakerOpen(CallboardError):
    """The call was not made."""

    def __init__(self, name: str, after_s: float) -> None:
        super().__init__(f"The circuit breaker of {name} is open: too many of its last calls failed.")
        self.after_s: Final = after_s


class Window(CircuitBreakerStorage):  # type: ignore[misc]
    """The state and what happened lately. While open nothing counts, and the moment of opening stays."""

    def __init__(self, name: str, policy: Policy, clock: Clock) -> None:
        super().__init__(name)
        self._policy = policy
        self._clock = clock
        self._state = CircuitBreakerState.CLOSED
        self._opened = 0.0
        self._calls: deque[tuple[float, bool]] = deque(maxlen=policy.calls_max)
        self.generation = 0

    @property
    def state(self) -> CircuitBreakerState:
        if self._state is CircuitBreakerState.OPEN and self.reopens_in_s <= 0:
            self.state = CircuitBreakerState.HALF_OPEN
        return self._state

    @state.setter
    def state(self, state: CircuitBreakerState) -> None:
        if state is self._state:
            return
        if state is CircuitBreakerState.OPEN:
            self._opened = self._clock()
        self._state = state
        self._calls.clear()
        self.generation += 1

    @property
    def reopens_in_s(self) -> float:
        return self._opened + self._policy.open_s - self._clock()

    def increment_counter(self) -> None:
        self._count(failed=True)

    def reset_counter(self) -> None:
        self._count(failed=False)

    @property
    def counter(self) -> int:
        """1 where the window says stop, against the breaker's `fail_max` of 1."""
        cut = self._clock() - self._policy.window_s
        recent = [failed for at, failed in self._calls if at > cut]
        enough = len(recent) >= self._policy.calls_min
        return int(enough and sum(recent) >= self._policy.ratio * len(recent))

    @property
    def opened_at(self) -> datetime:
        # Long ago, so that the library, which compares naive wall clocks, never holds a call back by itself.
        return datetime.min  # noqa: DTZ901

    @opened_at.setter
    def opened_at(self, date_time: datetime) -> None:
        """Ignored: wall clocks step."""

    def _count(self, *, failed: bool) -> None:
        if self._state is CircuitBreakerState.CLOSED:
            self._calls.append((self._clock(), failed))


class _Circuit(CircuitBreaker):  # type: ignore[misc]
    def open(self) -> None:
        # The library's own stamps the time with a call Python has deprecated: with warnings as errors it never opens.
        self.state = self._state_storage.state = CircuitBreakerState.OPEN


class _Unjudged(BaseException):
    """Carries a result past the breaker, which would take any Exception for a failure or a success."""

    def __init__(self, result: Any, error: Exception | None) -> None:
        self.result = result
        self.error = error


class Breaker:
    """Guards calls of one kind; `judge` says what an error means for it."""

    def __init__(
        self, name: str, judge: Callable[[Exception], Verdict], policy: Policy, clock: Clock = time.monotonic
    ) -> None:
        self._name = name
        self._judge = judge
        self._window = Window(name, policy, clock)
        self._circuit = _Circuit(
            fail_max=1, state_storage=self._window, exclude=[lambda error: judge(error) != "failure"], name=name
        )
        self._probing = False

    @property
    def state(self) -> str:
        """`closed`, `open` or `half_open`."""
        return str(self._window.state.name).lower()

    async def call(self, work: Callable[[], Awaitable[T]]) -> T:
        """Await `work()`, or raise BreakerOpen. A deadline belongs inside `work`: one outside would not count."""
        state = self._window.state
        if state is CircuitBreakerState.OPEN:
            raise BreakerOpen(self._name, self._window.reopens_in_s + jitter_s())
        if state is CircuitBreakerState.CLOSED:
            return await self._guarded(work)
        if self._probing:
            raise BreakerOpen(self._name, 1.0 + jitter_s())
        self._probing = True
        try:
            return await self._guarded(work)
        finally:
            self._probing = False

    async def _guarded(self, work: Callable[[], Awaitable[T]]) -> T:
        try:
            result: T = await self._circuit.call_async(self._judged, work, self._window.generation)
        except CircuitBreakerError as error:
            raise error.__cause__ or error from None
        except _Unjudged as passed:
            if passed.error is not None:
                raise passed.error from passed.error.__cause__
            result = passed.result
        return result

    async def _judged(self, work: Callable[[], Awaitable[T]], generation: int) -> T:
        try:
            result = await work()
        except CallboardError as error:
            if self._stale(generation) or self._judge(error) == "neutral":
                raise _Unjudged(None, error) from error
            raise
        if self._stale(generation):
            raise _Unjudged(result, None)
        return result

    def _stale(self, generation: int) -> bool:
        """Whether the breaker has changed its state since: a straggler says nothing about now."""
        return generation != self._window.generation
