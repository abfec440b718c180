"""Whose code it is: a line of the user's own files, or one of ours, of a library, of Python."""

from pathlib import Path
from types import TracebackType
from typing import Final

ROOT: Final = Path(__file__).parent.parent
USER_PLACES: Final = ("schemas/events", "workers/nodes", "workers/pipelines", "workers/providers")
_OURS: Final = tuple(ROOT / folder for folder in ("prompts", "schemas", "service", "sql", "workers"))
_USERS: Final = tuple(ROOT / folder for folder in USER_PLACES)


def is_users(name: str) -> bool:
    """Whether somebody wrote this file for this product: no library's, and nothing of ours."""
    file = Path(name)
    if not file.is_relative_to(ROOT) or "site-packages" in file.parts:
        return False
    return any(map(file.is_relative_to, _USERS)) or not any(map(file.is_relative_to, _OURS))


def line_of(name: str, line: int) -> str:
    """`workers/nodes/odd.py:37`; a file elsewhere by its full path."""
    file = Path(name)
    return f"{file.relative_to(ROOT) if file.is_relative_to(ROOT) else file}:{line}"


def raised_at(error: BaseException) -> str | None:
    """The innermost line of the user's own that it came through, or the one that Python can't read."""
    if isinstance(error, SyntaxError) and error.filename:
        return line_of(error.filename, error.lineno or 1)
    line, trace = None, error.__traceback__
    while trace is not None:
        line, trace = _of(trace) or line, trace.tb_next
    return line


def _of(trace: TracebackType) -> str | None:
    name = trace.tb_frame.f_code.co_filename
    return line_of(name, trace.tb_lineno) if is_users(name) else None
