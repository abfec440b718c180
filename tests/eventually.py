"""Wait for a fact, not for a time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.02


async def eventually(fact: Callable[[], Awaitable[T]], timeout_s: float = 15.0) -> T:
    """The first truthy value of `fact()`. Fails with the last value seen after `timeout_s`; an AssertionError in `fact`
    counts as not yet."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    last: object = None
    while loop.time() < deadline:
        try:
            value = await fact()
        except AssertionError as error:
            last = error
        else:
            if value:
                return value
            last = value
        await asyncio.sleep(POLL_S)
    raise AssertionError(f"not within {timeout_s:g} s; last: {last!r}")
