"""Circuit breakers on aiobreaker: a failure ratio over a window, a monotonic clock, one probe when half open.

aiobreaker keeps the state machine; what it would get wrong is answered by its storage and by what it is shown.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final, Literal, TypeVar

from aiobreaker import CircuitBreaker, CircuitBreakerError, CircuitBreakerState
from aiobreaker.storage.base import CircuitBreakerStorage
from msgspec import Struct

from service.core.errors import CallboardError, text_of
from workers.models.errors import jitter_s

T = TypeVar("T")

log = logging.getLogger("callboard.breaker")

Verdict = Literal["failure", "fatal", "success", "neutral"]
Clock = Callable[[], float]


# What a bug in a provider's file raises says nothing about the provider; the library would take it for an answer.
_BUGS: Final = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


class Policy(Struct, frozen=True):
    """Opens for `open_s` when `ratio` of the calls in the last `window_s` failed, `calls_min` of them at least; at once
    after a failure that is fatal: every other call would fail the same way."""

    ratio: float = 0.25
    calls_min: int = 20
    calls_max: int = 200
    window_s: float = 60.0
    open_s: float = 10.0


class BreakerOpen(CallboardError):
    """The call was not made."""

    def __init__(self, name: str, reason: str, after_s: float) -> None:
        super().__init__(f"The circuit breaker of {name} is open: {reason}")
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
        self._fatal = False
        self._answered_at = -math.inf
        self.generation = 0
        self.reason = ""

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
            if self._state is CircuitBreakerState.CLOSED:
                log.warning("the breaker of %s opens: %s", self.name, self.reason[:200])
        if state is CircuitBreakerState.CLOSED:
            log.warning("the breaker of %s closes: it answers again", self.name)
        self._state = state
        self._calls.clear()
        self._fatal = False
        self.generation += 1

    @property
    def reopens_in_s(self) -> float:
        return self._opened + self._policy.open_s - self._clock()

    @property
    def answered_s_ago(self) -> float:
        """How long ago a call went well; infinite where none ever did."""
        return self._clock() - self._answered_at

    def fail(self, error: Exception, *, fatal: bool) -> None:
        """Called with what the library will count in a moment."""
        self._fatal = self._fatal or fatal
        message = text_of(error)  # each event that meets the breaker is told the same
        self.reason = message if fatal else f"too many of its last calls failed, the last one so: {message}"

    def increment_counter(self) -> None:
        self._count(failed=True)

    def reset_counter(self) -> None:
        self._count(failed=False)

    @property
    def counter(self) -> int:
        """1 where the window says stop, against the breaker's `fail_max` of 1."""
        if self._fatal:
            return 1
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
        if not failed:
            self._answered_at = self._clock()
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
            fail_max=1,
            state_storage=self._window,
            exclude=[lambda error: judge(error) not in ("failure", "fatal")],
            name=name,
        )
        self._probes = 0
        self._prober: object = None

    @property
    def state(self) -> str:
        """`closed`, `open` or `half_open`."""
        return str(self._window.state.name).lower()

    @property
    def answered_s_ago(self) -> float:
        """How long ago a call went well; infinite where none ever did."""
        return self._window.answered_s_ago

    def check(self, asker: object = None) -> None:
        """Raises BreakerOpen where a call would not be made now.

        Half open, one call probes, and those of the same `asker` beside it: of the branches of a run, one that is sent
        away ends the others, and the probe with them.
        """
        state = self._window.state
        if state is CircuitBreakerState.OPEN:
            raise self._open(self._window.reopens_in_s)
        if state is CircuitBreakerState.HALF_OPEN and self._probes and (asker is None or asker is not self._prober):
            raise self._open(1.0)

    def _open(self, after_s: float) -> BreakerOpen:
        return BreakerOpen(self._name, self._window.reason, after_s + jitter_s())

    async def call(self, work: Callable[[], Awaitable[T]], asker: object = None) -> T:
        """Await `work()`, or raise BreakerOpen. A deadline belongs inside `work`: one outside would not count."""
        self.check(asker)
        if self._window.state is CircuitBreakerState.CLOSED:
            return await self._guarded(work)
        self._probes, self._prober = self._probes + 1, asker
        try:
            return await self._guarded(work)
        finally:
            self._probes -= 1

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
        except (CallboardError, *_BUGS) as error:
            verdict = self._judge(error)
            if self._stale(generation) or verdict == "neutral":
                raise _Unjudged(None, error) from error
            if verdict != "success":
                self._window.fail(error, fatal=verdict == "fatal")
            raise
        if self._stale(generation):
            raise _Unjudged(result, None)
        return result

    def _stale(self, generation: int) -> bool:
        """Whether the breaker has changed its state since: a straggler says nothing about now."""
        return generation != self._window.generation
