"""How user code can fail besides by an Exception, and which of several errors decides."""

import asyncio
from collections.abc import Coroutine, Generator
from functools import lru_cache
from pathlib import Path
from types import CodeType
from typing import Any, Final

from service.core.errors import Outage, Reject, Unavailable, WiringError, kind_of, text_of
from service.core.log import RUN
from service.core.traces import is_users
from workers.kit.memory import JournalMismatch, Stale, StepOver, TooLarge
from workers.models.call import LlmRefused
from workers.models.call_log import DaySpent

FINAL: Final = (Reject, LlmRefused, WiringError, JournalMismatch, TooLarge)
"""What makes the event dead, whatever failed beside it."""
OUTAGES: Final = (Outage, Unavailable, DaySpent)
"""What is somebody else's failure."""
ENDS_THE_LOOP: Final = (SystemExit, KeyboardInterrupt)
LEAVES_MAX: Final = 1000
PRODUCT: Final = tuple(f"{Path(__file__).parents[2] / name}/" for name in ("service", "workers"))


class Escaped(Exception):
    """User code raised what is no Exception (SystemExit, a PanicException of PyO3, …), or was cancelled by itself: an
    error like any other. `original` is what it raised.

    As an Exception it can't end the worker: a task of asyncio passes SystemExit and KeyboardInterrupt on to its loop.
    """

    def __init__(self, original: BaseException) -> None:
        super().__init__(f"{kind_of(original)}: {text_of(original)}")
        self.original: Final = original
        self.__cause__ = original


class Contained:
    """`with CONTAINED:` around user code: what it raises is an Exception, unless somebody else ends this run.

    Nobody does where it is cancelled and nobody asked the task to: then it awaited what another one had cancelled.
    """

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        match error:
            case None | Exception():
                return
            case Stale() if not isinstance(error, StepOver):
                return
            case asyncio.CancelledError() if _is_being_cancelled():
                return
            case GeneratorExit() if is_being_closed():
                return
            case BaseExceptionGroup() if stale := stale_in(error):
                raise stale from error
        raise Escaped(error) from error


CONTAINED: Final = Contained()


def stale_in(error: BaseException) -> Stale | None:
    """The member of a group that says that the claim is somebody else's."""
    members = leaves(error)
    return next((member for member in members if isinstance(member, Stale) and not isinstance(member, StepOver)), None)


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def is_being_closed() -> bool:
    """Whether a coroutine is thrown away: that happens outside of every task."""
    try:
        return asyncio.current_task() is None
    except RuntimeError:  # no loop runs
        return True


def original(error: BaseException) -> BaseException:
    """What user code raised."""
    return error.original if isinstance(error, Escaped) else error


def leaves(error: BaseException) -> list[BaseException]:
    """The members of a group, those of groups in it too, in their order; of any other error itself."""
    members: list[BaseException] = []
    left = [error]
    while left and len(members) < LEAVES_MAX:
        member = original(left.pop())
        if isinstance(member, BaseExceptionGroup):
            left.extend(reversed(member.exceptions))
        else:
            members.append(member)
    return members


def deciding(error: BaseException) -> BaseException:
    """Of a group the member that decides what becomes of the event: the first that is final; where all are outages, all
    of them; else the first that is none. Any other error decides itself.
    """
    members = leaves(error)
    if final := next((member for member in members if isinstance(member, FINAL)), None):
        return final
    if len(members) > 1 and all(isinstance(member, OUTAGES) for member in members):
        return _all_of(members)
    return next((member for member in members if not isinstance(member, OUTAGES)), members[0])


def _all_of(members: list[BaseException]) -> BaseException:
    """Several outages at once, as one: all have to be over."""
    spent = [member for member in members if isinstance(member, DaySpent)]
    if spent:
        return max(spent, key=lambda member: member.wait_s)
    outages = [member if isinstance(member, Outage) else as_outage(member) for member in members]
    free = [outage.max_uncharged for outage in outages]
    combined = Outage(
        " ".join(dict.fromkeys(outage.cause for outage in outages)),
        max(outage.after_s for outage in outages),
        known_delay=all(outage.known_delay for outage in outages),
        max_uncharged=None if None in free else max(number for number in free if number is not None),
        blocked_by=list(dict.fromkeys(name for outage in outages for name in outage.blocked_by)),
        wait_max_s=max(outage.wait_max_s for outage in outages),
    )
    combined.__cause__ = members[0]
    return combined


def as_outage(error: BaseException) -> Outage:
    """What can't be done now, by one who would say so to a caller: to an event it is an outage."""
    outage = Outage(text_of(error), float(getattr(error, "retry_after_s", 1)))
    outage.__cause__ = error
    return outage


class _Begin:
    """Awaited once, before anything else."""

    def __await__(self) -> Generator[None, None, None]:
        yield


_BEGIN: Final = _Begin()


async def _contained(inner: Coroutine[Any, Any, Any]) -> Any:
    begun = False
    try:
        await _BEGIN
        begun = True
    finally:
        if not begun:  # the task was cancelled before it began, or thrown away
            inner.close()
    try:
        return await inner
    except ENDS_THE_LOOP as error:
        raise Escaped(error) from error


def _begun(inner: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
    """What a task is to run in the place of `inner`. It has begun already: a task that is cancelled before it begins
    would leave `inner` unawaited."""
    outer = _contained(inner)
    outer.send(None)
    named: Any = outer
    named.__name__, named.__qualname__ = getattr(inner, "__name__", "task"), getattr(inner, "__qualname__", "task")
    return outer


@lru_cache(4096)
def _is_ours(code: CodeType | None) -> bool:
    """Whether it is a function of Callboard's, which contains user code itself: to wrap it too would cost each call."""
    return code is not None and code.co_filename.startswith(PRODUCT) and not is_users(code.co_filename)


def start_task(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> "asyncio.Task[Any]":
    """A loop's task factory: no task that a run has started ends the worker by SystemExit or KeyboardInterrupt."""
    if RUN.get() is not dict and not _is_ours(getattr(coro, "cr_code", None)) and isinstance(coro, Coroutine):
        coro = _begun(coro)
    return asyncio.Task(coro, loop=loop, **options)
