"""Limits of a model, kept by all workers together: one atomic script in Redis decides; without it, each has its share.

Who has to wait is told for how long. A short wait is waited out in place; a longer one is the event's, without a slot.
"""

import asyncio
import itertools
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

from prompts import Target
from service.core.errors import Outage
from service.core.metrics import Waited
from service.core.servers import REDIS_ERRORS
from service.core.supervise import end, supervised
from workers.models.permit import Permission, Permit
from workers.models.rate_limit_shares import AWAY_S, Shared, WaitReason, WorkerShare, spread

SCRIPT: Final = Path(__file__).with_suffix(".lua")
SCRIPT_TIMEOUT_S: Final = 1.0
PERMIT_MS: Final = 15_000
RENEW_S: Final = 5.0
BATCH: Final = 500
IN_PLACE_S: Final = 2.0
IN_PLACE_MAX: Final = 100
IDLE_S: Final = 2.0
UNITS: Final = {
    WaitReason.REQUESTS: "requests a minute",
    WaitReason.TOKENS: "tokens a minute",
    WaitReason.CONCURRENCY: "calls at a time",
}

log = logging.getLogger("callboard.limits")

Clock = Callable[[], float]
Asks = Sequence[tuple["Permit", asyncio.Future[tuple[float, WaitReason]]]]
Returned = tuple[str, int, int, int, int]


class RateLimiter:
    """In front of one model. Where no limits are declared it only keeps the pause that its provider asks for."""

    def __init__(self, target: Target, shared: Shared | None, clock: Clock = time.monotonic) -> None:
        name = f"{target.provider}/{target.model}"
        self.name: Final = f"limit:{name}"
        self._name: Final = f"{target.provider} {target.model}"
        self._keys: Final = (
            [f"{prefix}:{name}" for prefix in (shared.names.limit, shared.names.permits)] if shared else []
        )
        self._limits: Final = target.limits
        self._shared: Final = shared
        self._clock: Final = clock
        self._ids: Final = (f"{uuid4().hex[:12]}-{n}" for n in itertools.count())
        self._asks: list[tuple[Permit, asyncio.Future[tuple[float, WaitReason]]]] = []
        self._back: list[Returned] = []
        self._held: Final[dict[str, Permit]] = {}
        self._renew = self._look = False
        self._free = True
        self._paused_until = self._away_until = self._refused_at = -math.inf
        self._pause_s = 0.0
        self._in_place = 0
        self._part, self._learned = 1.0, 1  # of the most that a call may take, what calls take on average
        self._share: WorkerShare | None = None
        self._deciding: asyncio.Task[None] | None = None

    def permit(self, most_tokens: int, waited: Waited | None = None) -> "Permission":
        """`async with`: the right to make one call of at most so many tokens; the wait for it is measured by `waited`.

        Raises Outage, with the time to come again.
        """
        return Permission(self, most_tokens, waited)

    @property
    def state(self) -> str:
        """`open` while it sends calls away, else `closed`: then, as with a breaker, they may come sooner.

        That nobody was sent away may also be because all wait for their time: then Redis is asked what is left over.
        """
        if self._clock() - self._refused_at < IDLE_S:
            return "open"
        if self._limits is None or self._shared is None or self._free:
            return "closed"
        self._look = True
        self._decide()
        return "open"

    def pause(self, for_s: float) -> None:
        """Nobody asks it for so long: its provider has said so."""
        self._paused_until = max(self._paused_until, self._clock() + for_s)
        if self._limits is not None and self._shared is not None:
            self._pause_s = max(self._pause_s, for_s)
            self._decide()

    def renew(self) -> None:
        """Calls under way keep their permits; where Redis has forgotten them, it learns of them again."""
        if self._held and self._shared is not None and self._limits is not None:
            self._renew = True
            self._decide()

    async def close(self) -> None:
        await end([self._deciding] if self._deciding else [])

    async def enter(self, most_tokens: int) -> Permit:
        until = self._clock() + IN_PLACE_S
        while True:
            permit = Permit(next(self._ids), math.ceil(most_tokens * self._part), most_tokens, self._clock())
            wait_s, reason = await self._ask(permit)
            if reason is WaitReason.NONE:
                self._held[permit.id] = permit
                return permit
            if self._clock() + wait_s > until or self._in_place >= IN_PLACE_MAX:
                self._refused_at, self._free = self._clock(), False
                raise Outage(self._sentence(reason), spread(wait_s, reason), known_delay=True, blocked_by=[self.name])
            self._in_place += 1
            try:
                await asyncio.sleep(wait_s)
            finally:
                self._in_place -= 1

    async def _ask(self, permit: Permit) -> tuple[float, WaitReason]:
        now = self._clock()
        if now < self._paused_until:
            return self._paused_until - now, WaitReason.PAUSE
        if self._limits is None:
            return 0.0, WaitReason.NONE
        if self._shared is None or now < self._away_until:
            return self._by_share(permit)
        answer: asyncio.Future[tuple[float, WaitReason]] = asyncio.get_running_loop().create_future()
        self._asks.append((permit, answer))
        self._decide()
        return await answer

    def leave(self, permit: Permit) -> None:
        if self._held.pop(permit.id, None) is None or self._limits is None:
            return
        requests, tokens = (0, 0) if permit.is_sent else (1, permit.tokens)
        if permit.used is not None:
            tokens = permit.tokens - permit.used
            self._learned = min(self._learned + 1, 10)
            self._part += (min(permit.used / permit.most, 2.0) - self._part) / self._learned
        if self._share is not None:
            self._share.take(-requests, -tokens)
        elif self._shared is not None:
            ms = round((self._clock() - permit.begun) * 1000) if permit.is_sent else -1
            self._back.append((permit.id, requests, tokens, ms, -1 if permit.used is None else permit.used))
            self._decide()

    def _decide(self) -> None:
        if self._deciding is None or self._deciding.done():
            self._deciding = asyncio.create_task(self._decided())

    async def _decided(self) -> None:
        """Everything that has come up since the last time, in one round trip."""
        while self._asks or self._back or self._renew or self._look or self._pause_s:
            asks, self._asks = self._asks[:BATCH], self._asks[BATCH:]
            back, self._back = self._back[:BATCH], self._back[BATCH:]
            renewed, self._renew = list(self._held) if self._renew else [], False
            pause_s, self._pause_s = self._pause_s, 0.0
            looks, self._look = self._look, False
            if self._share is not None:
                back.append(("", -self._share.spent[0], -self._share.spent[1], -1, -1))
            try:
                *replies, free = await self._run(asks, back, renewed, pause_s)
            except REDIS_ERRORS as error:
                self._lost(error)
                answers = [self._by_share(permit) for permit, _ in asks]
            else:
                if self._share is not None:
                    self._share, self._renew = None, bool(self._held)
                self._free = self._free or (looks and bool(free))
                answers = [
                    (wait_ms / 1000, WaitReason(number))
                    for wait_ms, number in zip(replies[::2], replies[1::2], strict=True)
                ]
            for (permit, answer), (wait_s, reason) in zip(asks, answers, strict=True):
                if not answer.done():
                    answer.set_result((wait_s, reason))
                elif reason is WaitReason.NONE:  # who asked is gone
                    self._back.append((permit.id, 1, permit.tokens, -1, -1))

    async def _run(self, asks: Asks, back: Sequence[Returned], renewed: Sequence[str], pause_s: float) -> Sequence[int]:
        limits, shared = self._limits, self._shared
        assert limits is not None and shared is not None  # noqa: PT018
        bounds = (limits.requests_per_min or 0, limits.tokens_per_min or 0, limits.concurrency or 0)
        args: list[str | int] = [*bounds, PERMIT_MS, round(pause_s * 1000), len(back)]
        args += [field for returned in back for field in returned]
        args += [len(renewed), *renewed, len(asks)]
        args += [field for permit, _ in asks for field in (permit.id, permit.tokens)]
        async with asyncio.timeout(SCRIPT_TIMEOUT_S):
            return await shared.script(keys=self._keys, args=args)

    def _lost(self, error: BaseException) -> None:
        self._away_until = self._clock() + AWAY_S
        if self._share is None:
            log.warning("%s: Redis does not answer, this worker keeps to its share: %s", self._name, error)

    def _by_share(self, permit: Permit) -> tuple[float, WaitReason]:
        assert self._limits is not None
        now, workers = self._clock(), self._shared.workers() if self._shared else 1
        self._share = self._share or WorkerShare(self._limits, now)
        return self._share.ask(permit.tokens, len(self._held), max(1, workers), now)

    def _sentence(self, reason: WaitReason) -> str:
        if reason is WaitReason.PAUSE:
            return f"{self._name} has asked us to wait."
        assert self._limits is not None
        most = {
            WaitReason.REQUESTS: self._limits.requests_per_min,
            WaitReason.TOKENS: self._limits.tokens_per_min,
            WaitReason.CONCURRENCY: self._limits.concurrency,
        }[reason]
        return f"{self._name} is at its limit of {most} {UNITS[reason]}."


@asynccontextmanager
async def open_limiters(targets: Iterable[Target], shared: Shared | None) -> AsyncIterator[dict[Target, RateLimiter]]:
    """One for each; while it is open, calls under way keep their permits."""
    limiters = {target: RateLimiter(target, shared) for target in targets}

    async def renew() -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            for limiter in limiters.values():
                limiter.renew()

    async with supervised({"limits": renew}):
        try:
            yield limiters
        finally:
            for limiter in limiters.values():
                await limiter.close()
