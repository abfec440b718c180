"""An event that is being run: its claim, the task that runs it, and the clock of its time limit."""

import asyncio
import time
from typing import Final

from msgspec import Struct

from service.core.deadlines import Deadlines
from service.core.time_limit import TimeLimit
from service.core.traces import location_of_task
from workers.compiler.wiring import Wired
from workers.engine.claim import Claimed
from workers.engine.run_feed import RunFeed

MOVED_MIN_S: Final = 1.0


class RunningEvent(Struct, eq=False):
    """`is_ours`: until we hear that the claim is somebody else's; `attempting`: until it is settled.

    `cancels`: how often we have ended the run, which user code may swallow. `moved_s`: by how much its deadline in
    Postgres has been moved, since the time for which we let it wait is none of the user's.
    """

    claimed: Claimed
    feed: RunFeed
    task: "asyncio.Task[None] | None" = None
    attempting: bool = True
    is_ours: bool = True
    cancels: int = 0
    clock: TimeLimit | None = None
    ended_at: float = 0.0
    moved_s: float = 0.0

    @property
    def cancelled(self) -> bool:
        """Whether we have ended the run: any other cancellation is one of its own."""
        return self.cancels > 0

    def cancel(self) -> None:
        if self.task is not None:
            self.cancels += 1
            self.task.cancel()

    def uncancel(self) -> None:
        """User code may have cancelled its own task, as we have where the worker stops."""
        while self.task is not None and self.task.cancelling():
            self.task.uncancel()

    def limit(self, limit_s: float, deadlines: Deadlines[TimeLimit]) -> TimeLimit:
        self.clock = TimeLimit(limit_s, deadlines)
        return self.clock

    def lift_limit(self) -> None:
        if self.clock is not None:
            self.clock.lift()

    def timed_out(self, error: BaseException, wired: Wired) -> TimeoutError | None:
        """What an error says where our limit ran out; a TimeoutError of the user's own looks the same."""
        ran_out = self.clock is not None and self.clock.expired
        if not ran_out or not isinstance(error, TimeoutError | asyncio.CancelledError):
            return None
        limit = f"{wired.pipeline.timeout_s:g} s (timeout_s)"
        late = TimeoutError(f"not finished in time: an attempt of {wired.name} may take {limit}")
        late.__cause__ = error
        return late

    @property
    def late_s(self) -> float:
        """By how much more its deadline is to be moved: so long it waited for us, and for its ending to be stored."""
        waited_s = self.clock.waited_s if self.clock else 0.0
        ending_s = 0.0 if self.attempting else time.monotonic() - self.ended_at
        late_s = waited_s + ending_s - self.moved_s
        return late_s if late_s > MOVED_MIN_S else 0.0

    @property
    def location(self) -> str:
        """Where in the user's code it stands, as far as its own task shows."""
        return (self.task and location_of_task(self.task)) or "no code of yours"
