"""Resources: what nodes share and a worker opens once, at first use, and closes when it has drained."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from inspect import isasyncgenfunction, signature
from typing import Any, Final, get_args, get_origin, get_type_hints

from msgspec import Struct

from service.core.errors import Outage, WiringError, kind_and_text, kind_of, text_of
from service.core.time_limit import our_wait
from workers.kit.failures import CONTAINED, original
from workers.kit.flow import where

OPEN_S: Final = 30.0
CLOSE_S: Final = 2.0

Open = Callable[[], AbstractAsyncContextManager[Any]]
Uses = tuple[tuple[int, Open], ...]
"""Which arguments of a node are resources."""

log = logging.getLogger("callboard.resources")


def given_by(opening: Open) -> Any:
    """The type of a resource. Raises WiringError where it is not written as one."""
    inner = getattr(opening, "__wrapped__", None)
    if not isasyncgenfunction(inner) or signature(opening).parameters:
        raise WiringError(
            f"{where(opening)} is no resource. Write it `@asynccontextmanager async def …() -> AsyncIterator[T]`, "
            "without parameters."
        )
    try:
        returns = get_type_hints(inner).get("return")
    except NameError as error:
        raise WiringError(f"{where(opening)}: {error}. Import the type where its module can see it.") from error
    if get_origin(returns) not in (AsyncIterator, AsyncGenerator):
        raise WiringError(f"{where(opening)} does not say what it gives. Annotate it `-> AsyncIterator[T]`.")
    return get_args(returns)[0]


class _Held(Struct, eq=False):
    """A resource lives in one task from opening to closing: what it holds may belong to the task that opened it."""

    task: "asyncio.Task[None]"
    opened: "asyncio.Future[Any]"
    close: asyncio.Event


class Resources:
    """The resources that are open in this worker, for all pipelines that name the same function."""

    def __init__(self) -> None:
        self._held: Final[dict[Open, _Held]] = {}

    async def get(self, opening: Open) -> Any:
        """Open it, or wait for whoever does. Raises Outage where it can't be opened; the next call tries again."""
        held = self._held.get(opening)
        if held is None or held.task.done():
            held = self._held[opening] = _hold(opening)
        with our_wait():  # others may have to wait for it as well, and it has a limit of its own
            await asyncio.wait((held.opened, held.task), return_when=asyncio.FIRST_COMPLETED)
        if held.opened.done():
            return held.opened.result()
        raise Outage(f"the resource {where(opening)} can't be opened: {_words(held.task)}")

    def is_one(self, value: object) -> bool:
        return any(held.opened.done() and held.opened.result() is value for held in self._held.values())

    async def close(self) -> None:
        """Close all of them within CLOSE_S each; what goes wrong is logged."""
        for held in self._held.values():
            held.close.set()
            if not held.opened.done():
                held.task.cancel()
        if self._held:
            await asyncio.wait([held.task for held in self._held.values()], timeout=CLOSE_S + 1)
        for opening, held in self._held.items():
            if not held.task.done() or (held.opened.done() and not held.task.cancelled() and held.task.exception()):
                log.error("the resource %s was not closed well: %s", where(opening), _words(held.task))


def _hold(opening: Open) -> _Held:
    held_until, opened = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(_live(opening, opened, held_until), name=f"resource {where(opening)}")
    task.add_done_callback(lambda done: None if done.cancelled() else done.exception())  # fetched: nobody may wait
    return _Held(task, opened, held_until)


async def _live(opening: Open, opened: "asyncio.Future[Any]", close: asyncio.Event) -> None:
    clock = asyncio.get_running_loop().time
    with CONTAINED:
        async with asyncio.timeout(OPEN_S) as deadline, opening() as value:
            deadline.reschedule(None)
            opened.set_result(value)
            await close.wait()
            deadline.reschedule(clock() + CLOSE_S)


def _words(task: "asyncio.Task[None]") -> str:
    if not task.done():
        return "it hangs"
    if task.cancelled():
        return "it was cancelled"
    error = task.exception()
    if error is None:
        return "it ended"
    late = isinstance(error, TimeoutError) and text_of(error) == kind_of(error)
    return "it took too long" if late else kind_and_text(original(error))


@asynccontextmanager
async def open_resources() -> AsyncIterator[Resources]:
    resources = Resources()
    try:
        yield resources
    finally:
        await resources.close()
