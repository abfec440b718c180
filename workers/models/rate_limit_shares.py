"""Where the limits are kept for all workers, and what one of them may do while that is away."""

import random
from collections.abc import Awaitable, Callable, Sequence
from enum import IntEnum
from typing import Final, Protocol

from msgspec import Struct

from prompts import Limits
from service.core.streams import Names
from workers.models.errors import jitter_s

AWAY_S: Final = 1.0
HELD_S: Final = 10.0
PAUSE_MAX_S: Final = 600.0


class WaitReason(IntEnum):
    """Which limit makes a call wait, by the numbers that rate_limits.lua returns."""

    NONE = 0
    REQUESTS = 1
    TOKENS = 2
    CONCURRENCY = 3
    PAUSE = 4


class Script(Protocol):
    """The text of rate_limits.lua, as a Redis client runs it."""

    def __call__(self, *, keys: Sequence[str], args: Sequence[str | int | float]) -> Awaitable[Sequence[int]]: ...


class Shared(Struct, frozen=True):
    """Where the limits are kept: the script, its keys, and how many workers share them where that can't be asked."""

    script: Script
    names: Names
    workers: Callable[[], int]


class WorkerShare:
    """What one worker may do while Redis is away: its part of what comes, beginning with nothing."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits: Final = limits
        self._at = now
        self._requests = self._tokens = 0.0
        self.spent: tuple[int, int] = (0, 0)

    def ask(self, tokens: int, running: int, workers: int, now: float) -> tuple[float, WaitReason]:
        """Seconds to wait, and for which limit; 0 is a yes. `running`: the calls that this worker has under way."""
        limits, gone_s, self._at = self._limits, now - self._at, now
        per_s, tokens_per_s = (
            (limit or 0) / 60 / workers for limit in (limits.requests_per_min, limits.tokens_per_min)
        )
        full, full_tokens = max(1.0, per_s * HELD_S), max(1.0, tokens_per_s * HELD_S)
        self._requests = min(full, self._requests + gone_s * per_s)
        self._tokens = min(full_tokens, self._tokens + gone_s * tokens_per_s)
        needed = min(tokens, full_tokens)
        if limits.concurrency and running >= max(1, limits.concurrency // workers):
            return AWAY_S, WaitReason.CONCURRENCY
        if per_s and self._requests < 1:
            return (1 - self._requests) / per_s, WaitReason.REQUESTS
        if tokens_per_s and self._tokens < needed:
            return (needed - self._tokens) / tokens_per_s, WaitReason.TOKENS
        self.take(1, tokens)
        return 0.0, WaitReason.NONE

    def take(self, requests: int, tokens: int) -> None:
        self._requests, self._tokens = self._requests - requests, self._tokens - tokens
        self.spent = (self.spent[0] + requests, self.spent[1] + tokens)


def spread(wait_s: float, reason: WaitReason) -> float:
    """A pause ends for all at once, and so far ahead nobody knows: who waits for these comes at a time of its own."""
    if wait_s > PAUSE_MAX_S:
        return random.uniform(PAUSE_MAX_S / 2, PAUSE_MAX_S)
    return wait_s + jitter_s() if reason is WaitReason.PAUSE else wait_s
