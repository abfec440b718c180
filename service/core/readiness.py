"""Whether what a program is there for would work: judged by what was done, with the reason where not."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

import sql
from service.core.errors import Unavailable, text_of
from service.core.metrics import Meters
from service.core.migrate import pending
from service.core.postgres_errors import SENTENCES, Reason, reason_of
from service.core.servers import POSTGRES_ERRORS, Pool

NOT_READY_S: Final = 20.0
# An API that stored nothing for so long finds out by a write that it rolls back.
PROBE_AFTER_S: Final = 5.0
CHECK_TIMEOUT_S: Final = 2.0

SQL: Final = sql.queries("readiness")

log = logging.getLogger("callboard.readiness")


class CommitHealth:
    """How the commits of the kind `name` went lately, also for the meters. Written by the loop's thread; may be read by
    any."""

    def __init__(self, name: str, meters: Meters, clock: Callable[[], float] = time.monotonic) -> None:
        self._name: Final = name
        self._meters: Final = meters
        self._clock: Final = clock
        self._failed: tuple[float, Reason] | None = None
        self.tried_at = clock()
        self.writing = 0  # batches in hand, also between two attempts

    @property
    def reason(self) -> Reason | None:
        """Why the last one failed; None where it did not."""
        failed = self._failed
        return failed[1] if failed else None

    @property
    def failing(self) -> Reason | None:
        """Why none came about for NOT_READY_S; None where one did, or the first failed less long ago."""
        failed = self._failed
        return failed[1] if failed and self._clock() - failed[0] >= NOT_READY_S else None

    @property
    def idle_s(self) -> float:
        """How long ago the last one was tried; 0 while one is in hand."""
        return 0.0 if self.writing else self._clock() - self.tried_at

    def begin(self) -> float:
        self.tried_at = self._clock()
        return self.tried_at

    def succeeded(self) -> None:
        if self._failed:
            self._meters.set("callboard_commits_failing", 0.0, (self._name, self._failed[1]))
        self.tried_at, self._failed = self._clock(), None

    def failed(self, error: BaseException, begun: float) -> Reason:
        """`begun`: when the attempt began, by `begin`."""
        since, before = self._failed or (begun, None)
        reason = reason_of(error)
        if before not in (None, reason):
            self._meters.set("callboard_commits_failing", 0.0, (self._name, before))
        self._meters.set("callboard_commits_failing", 1.0, (self._name, reason))
        self.tried_at, self._failed = self._clock(), (since, reason)
        return reason

    def late(self, timeout_s: float) -> Unavailable:
        """What is said to who has waited for so long for a commit."""
        if self.reason in (None, "away"):
            return Unavailable(f"Postgres did not answer within {timeout_s:g} s")
        return Unavailable(f"not written within {timeout_s:g} s: {SENTENCES[self.reason]}")


class Readiness:
    """Of an API: whether it could store an event now."""

    def __init__(self, pool: Pool, commits: CommitHealth) -> None:
        self._pool: Final = pool
        self._commits: Final = commits
        self._last: Reason | None = None

    async def why_not(self) -> str | None:
        """One of SENTENCES, or None. Costs one or two statements; never takes longer than twice CHECK_TIMEOUT_S."""
        reason = await self._look()
        if reason is None:
            await self._probe()
            reason = self._commits.failing
        self._last = reason
        return SENTENCES[reason] if reason else None

    async def _look(self) -> Reason | None:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                if await self._pool.fetchval(SQL["read_only"]):
                    return "read-only"
                missing = await pending(self._pool)
        except POSTGRES_ERRORS as error:
            return self._noted(error)
        if missing and self._last != "schema":
            log.warning("not ready: migrations have not run: %s", ", ".join(missing))
        return "schema" if missing else None

    async def _probe(self) -> None:
        """What nobody tried lately is tried, and rolled back; what it shows counts as if it had been an event's."""
        if self._commits.idle_s < PROBE_AFTER_S:
            return
        begun = self._commits.begin()
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S), self._pool.acquire() as connection:
                attempt = connection.transaction()
                await attempt.start()
                try:
                    await connection.execute(SQL["probe"])
                finally:
                    await attempt.rollback()
        except POSTGRES_ERRORS as error:
            self._noted(error)
            self._commits.failed(error, begun)
        else:
            self._commits.succeeded()

    def _noted(self, error: BaseException) -> Reason:
        reason = reason_of(error, self._pool)
        if reason != self._last:
            log.warning("%s: %s", SENTENCES[reason], text_of(error))
        return reason
