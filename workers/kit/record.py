"""What surrounds a node while it runs: its place on the timeline, its time limit, the size of what it gives."""

import asyncio
import time
from collections.abc import Awaitable
from datetime import datetime
from typing import Any, Final

from service.core.errors import kind_and_text
from service.core.log import STEP
from service.core.time_limit import TimeLimit
from workers.kit.failures import CONTAINED, original
from workers.kit.memory import Effects, Facts, Step, TooLarge

ERROR_MAX: Final = 200


class OnRecord:
    """A step on the timeline, however it ends; then it is over."""

    def __init__(self, facts: Facts, step: str, effects: Effects) -> None:
        self._facts: Final = facts
        self._step: Final = step
        self._effects: Final = effects
        self.at: Final = facts.now()
        self._begun: Final = time.perf_counter()

    @property
    def ms(self) -> float:
        return (time.perf_counter() - self._begun) * 1000

    def __enter__(self) -> "OnRecord":
        self._outer = STEP.get()
        STEP.set(self._step)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._effects.over = True
        STEP.set(self._outer)  # by no token: a run that is thrown away ends in another context
        if error is None:
            note(self._facts, self._step, self.at, self.ms, "done")
        elif isinstance(error, asyncio.CancelledError):
            note(self._facts, self._step, self.at, self.ms, "cancelled")
        else:
            failed(self._facts, self._step, self.at, self.ms, error)


def note(facts: Facts, step: str, at: datetime, ms: float, state: str, error: str = "") -> None:
    facts.steps.append(facts.tell(Step(step, at, round(ms, 3), state, error)))


def failed(facts: Facts, step: str, at: datetime, ms: float, error: BaseException) -> None:
    facts.failed[step] = error
    note(facts, step, at, ms, "failed", kind_and_text(original(error), ERROR_MAX))


async def in_time(running: Awaitable[Any], node_name: str, limit_s: float | None) -> Any:
    """Await user code, for `limit_s` of its own time at most. What it raises is an Exception: see CONTAINED."""
    if limit_s is None:
        with CONTAINED:
            return await running
    try:
        async with TimeLimit(limit_s) as limit:
            with CONTAINED:
                return await running
    except TimeoutError as error:
        if not limit.expired:
            raise
        late = TimeoutError(f"{node_name} took longer than the {limit_s:g} s that `limits_s` gives it.")
        cut_off = error.__cause__ or error
        raise late.with_traceback(cut_off.__traceback__) from error  # which says where the node was


def check_size(what: str, size: int, size_max: int) -> None:
    if size > size_max:
        raise TooLarge(f"{what} has {size} bytes, CALLBOARD_RESULT_MAX is {size_max}. Return less, or set it higher.")
