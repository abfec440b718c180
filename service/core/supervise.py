"""Parts side by side, each started again when it ends; and an end that comes in time."""

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Final

from service.core.errors import kind_and_text
from service.core.servers import backoff_s

LONG_ENOUGH_S: Final = 60.0
PAUSE_MAX_S: Final = 5.0
CANCEL_AGAIN_S: Final = 2.0
STOP_MAX_S: Final = 4.0

Part = Callable[[], Awaitable[None]]
Explains = Callable[[Exception], bool]

log = logging.getLogger("callboard.supervise")


def unexplained(_: Exception) -> bool:
    return False


@asynccontextmanager
async def supervised(parts: Mapping[str, Part], explains: Explains = unexplained) -> AsyncIterator[None]:
    """Run parts until the end of the context, each started again whenever an error ends it.

    `explains`: whether it is known why an error came, and said elsewhere: then it isn't logged as if it were news.
    """
    tasks = [asyncio.create_task(keep(name, part, explains), name=name) for name, part in parts.items()]
    try:
        yield
    finally:
        await end(tasks)


async def end(tasks: Iterable["asyncio.Task[None]"]) -> None:
    """Cancel until done: before Python 3.12 `wait_for`, which redis-py uses, may swallow a cancellation."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)


async def keep(name: str, part: Part, explains: Explains = unexplained) -> None:
    """Start a part again whenever an error ends it, with growing pauses; a part that returns is done."""
    tries = 0
    while True:
        begun = asyncio.get_running_loop().time()
        try:
            await part()
            return
        except Exception as error:
            if asyncio.get_running_loop().time() - begun > LONG_ENOUGH_S:
                tries = 0
            tries += 1
            level = logging.DEBUG if explains(error) else logging.WARNING
            log.log(level, "%s ended and starts again: %s", name, kind_and_text(error))
            log.debug("%s ended", name, exc_info=error)
        await asyncio.sleep(backoff_s(tries, 0.2, PAUSE_MAX_S))


def end_in_time(grace_s: float) -> None:
    """Called when the program is told to end: it is gone STOP_MAX_S after the grace time, whatever hangs.

    A thread, since the loop may be what hangs. Nothing is lost by it: a commit is whole or was not, and the lease frees
    what could not be handed back.
    """
    timer = threading.Timer(grace_s + STOP_MAX_S, _leave, [asyncio.get_running_loop()])
    timer.daemon = True
    timer.start()


def _leave(loop: asyncio.AbstractEventLoop) -> None:
    left = ", ".join(sorted(task.get_name() for task in asyncio.all_tasks(loop)))
    log.warning("the end took too long (Postgres or Redis does not answer?); others take over what is left: %s", left)
    os._exit(0)
