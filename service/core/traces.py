"""Where in the user's own code an error was raised."""

import asyncio
import sysconfig
import traceback
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final

from schemas.text import storable

ROOT: Final = Path(__file__).resolve().parents[2]
OURS: Final = ("schemas", "service", "workers", "prompts", "sql")
USERS: Final = ("schemas/events", "workers/nodes", "workers/pipelines", "workers/providers")
LIBRARIES: Final = ("site-packages", "dist-packages")
PLACE_MAX: Final = 300
_CAUSES_MAX: Final = 10
_FRAMES_MAX: Final = 2000
_MEMBERS_MAX: Final = 5
_DEPTH_MAX: Final = 3
_STANDARD: Final = tuple(
    str(Path(path).resolve()) + "/" for name in ("stdlib", "platstdlib") if (path := sysconfig.get_path(name))
)


def location_of(error: BaseException) -> str | None:
    """`workers/nodes/triage.py:11 in classify`: the deepest frame of the user's own files; None where there is none.

    Of an error that was raised outside of them (a library's in a thread, our own about a time limit) its cause, or what
    was being handled when it was raised, may have one.
    """
    for cause in causes(error):
        if frames := list(_users_frames(cause.__traceback__)):
            return _location(frames[-1])
    return None


def users_frames(error: BaseException) -> list[str]:
    """The locations of the user's own frames, the deepest first."""
    return [_location(frame) for frame in reversed(list(_users_frames(error.__traceback__)))]


def location_of_task(task: "asyncio.Task[Any]") -> str | None:
    """Where a suspended task stands in the user's own files: what it awaits in another task is not seen."""
    location: str | None = None
    awaited: Any = task.get_coro()
    for _ in range(_FRAMES_MAX):
        frame = getattr(awaited, "cr_frame", None)
        if frame is None:
            break
        if is_users(frame.f_code.co_filename):
            location = _location((frame, frame.f_lineno))
        awaited = getattr(awaited, "cr_await", None)
    return location


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, its cause, and so on, each once and _CAUSES_MAX of them at most."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen and len(seen) < _CAUSES_MAX:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


def _users_frames(trace: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    for _ in range(_FRAMES_MAX):
        if trace is None:
            return
        if is_users(trace.tb_frame.f_code.co_filename):
            yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


@lru_cache(4096)
def is_users(file: str) -> bool:
    """Whether a file is the user's: neither Python's, nor a library's, nor ours."""
    if file.startswith("<"):
        return False
    path = Path(file).resolve()
    if not path.is_relative_to(ROOT):
        return not any(library in path.parts for library in LIBRARIES) and not str(path).startswith(_STANDARD)
    below = path.relative_to(ROOT)
    if below.as_posix().startswith(tuple(f"{folder}/" for folder in USERS)):
        return True
    return below.parts[0] not in (*OURS, ".venv") and not any(library in below.parts for library in LIBRARIES)


def _location(frame_and_line: tuple[FrameType, int]) -> str:
    frame, line = frame_and_line
    path = Path(frame.f_code.co_filename)
    resolved = path.resolve()
    shown = resolved.relative_to(ROOT).as_posix() if resolved.is_relative_to(ROOT) else str(path)
    return storable(f"{shown}:{line} in {frame.f_code.co_name}", PLACE_MAX)


def formatted(error: BaseException) -> str:
    """Its traceback without a word of its text, which may quote what an event said: the user's frames first."""
    lines: list[str] = []
    if own := next((frames for cause in causes(error) if (frames := users_frames(cause))), None):
        lines += ["In your own code, the deepest first:\n", *(f"  {location}\n" for location in own)]
    return "".join([*lines, *_raised(error)])


def _raised(error: BaseException | None, depth: int = 0) -> Iterator[str]:
    for _ in range(_CAUSES_MAX):
        if error is None:
            return
        yield from traceback.format_tb(error.__traceback__, _FRAMES_MAX)
        yield f"{type(error).__module__}.{type(error).__qualname__}\n"
        if isinstance(error, BaseExceptionGroup) and depth < _DEPTH_MAX:
            for member in error.exceptions[:_MEMBERS_MAX]:
                yield from _raised(member, depth + 1)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
