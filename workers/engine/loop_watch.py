"""Where the event loop stands still: a thread looks while it does not run, and the log says in which step and line."""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

from msgspec import Struct

from schemas.origin import is_users, line_of
from service.core.log import STEP
from service.core.servers import TIMEOUTS
from workers.kit.run import step

TICK_S: Final = 0.1
LOOK_S: Final = 0.5
STILL_S: Final = 1.0
AFTERWARDS_S: Final = 2.0
DEBUGGERS: Final = ("bdb", "pdb", "pydevd", "_pydevd_bundle.pydevd")

log = logging.getLogger("callboard.loop")


class Location(Struct, frozen=True):
    """Where the loop was seen, for people; `is_users`: in a file that somebody wrote for this product."""

    text: str
    is_users: bool


_NOWHERE: Final = Location("none of this process ran", is_users=False)


class LoopWatch:
    """Runs on the loop that it watches. `in_debugger` is called there when somebody has stopped it in a debugger."""

    def __init__(self, in_debugger: Callable[[], None]) -> None:
        self._is_debugged = False
        self._in_debugger: Final = in_debugger
        self._ticked_at = time.monotonic()
        self._stood_at = float("-inf")
        self._location = _NOWHERE
        self._is_stopped = False

    def debugged(self) -> bool:
        """Whether somebody has ever stopped it in a debugger."""
        return self._is_debugged

    def explains(self, error: Exception) -> bool:
        """Whether it is a time-out of a loop that has just stood still, and no news of Redis or Postgres."""
        now = time.monotonic()
        stood_still = now - self._stood_at < AFTERWARDS_S or now - self._ticked_at > STILL_S
        return stood_still and isinstance(error, TIMEOUTS)

    async def run(self) -> None:
        """Watch until cancelled."""
        stop = threading.Event()
        loop, thread = asyncio.get_running_loop(), threading.get_ident()
        self._ticked_at = time.monotonic()
        threading.Thread(target=self._look, args=(loop, thread, stop), name="loop watch", daemon=True).start()
        try:
            while True:
                await asyncio.sleep(TICK_S)
                now = time.monotonic()
                late_s, self._ticked_at = now - self._ticked_at - TICK_S, now
                if late_s >= STILL_S:
                    self._stood_at = now
                    self._tell(late_s + TICK_S / 2)
        finally:
            stop.set()

    def _look(self, loop: asyncio.AbstractEventLoop, thread: int, stop: threading.Event) -> None:
        """In a thread of its own: costs nothing while the loop ticks."""
        while not stop.wait(LOOK_S):
            if time.monotonic() - self._ticked_at < STILL_S or (frame := sys._current_frames().get(thread)) is None:
                continue
            frames = list(_outward(frame))
            if any(frame.f_globals.get("__name__") in DEBUGGERS for frame in frames):
                if not self._is_stopped:
                    self._is_stopped = self._is_debugged = True
                    loop.call_soon_threadsafe(self._in_debugger)  # it runs before the timers that are due by then
            else:
                self._location = _location(frames, loop)

    def _tell(self, still_s: float) -> None:
        location, self._location = self._location, _NOWHERE
        if self._is_stopped:
            self._is_stopped = False
            log.info("the worker stood in a debugger for %.1f s; its runs have no time limits any more", still_s)
        elif location.is_users:
            advice = "blocking code belongs into asyncio.to_thread"
            log.warning("the loop stood still for %.1f s in %s; %s", still_s, location.text, advice)
        else:
            log.info(
                "the loop stood still for %.1f s in no code of yours (%s): is the machine busy?", still_s, location.text
            )


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _location(frames: list[FrameType], loop: asyncio.AbstractEventLoop) -> Location:
    """`step odd (workers/nodes/odd.py:37)`: the innermost line of the user's own; where there is none, of anybody's."""
    own = next((frame for frame in frames if is_users(frame.f_code.co_filename)), None)
    if own is None:
        return Location(line_of(frames[0].f_code.co_filename, frames[0].f_lineno), is_users=False)
    line, key = line_of(own.f_code.co_filename, own.f_lineno), _step(frames, loop)
    return Location(f"step {key} ({line})" if key else line, is_users=True)


def _step(frames: list[FrameType], loop: asyncio.AbstractEventLoop) -> str:
    """The key of the step that stands there: by the frame that runs it, or by the context of a task that it started."""
    running = next((frame.f_locals.get("run") for frame in frames if frame.f_code is step.__code__), None)
    if running is not None:
        return str(running.step_key)
    context = getattr(asyncio.current_task(loop), "get_context", None)  # Python 3.12 has it
    return str(context().get(STEP, "")) if context else ""
