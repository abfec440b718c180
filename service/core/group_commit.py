"""Group commit: concurrent callers share one statement on a held connection."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar, cast

from service.core.deadlines import Deadlines, FutureGroup
from service.core.errors import CallboardError, Unavailable, text_of
from service.core.log import Seldom
from service.core.metrics import Meters
from service.core.postgres_errors import SENTENCES, is_row_fault
from service.core.queue_shares import QueueShares
from service.core.readiness import CommitHealth
from service.core.servers import POSTGRES_ERRORS, Connection, Held, backoff_s, postgres_passes
from service.core.supervise import supervised

T = TypeVar("T")
R = TypeVar("R")

SIZE: Final = 500
WAITING_MAX: Final = 10_000
CROWDED: Final = 8  # from an eighth of the places on, each caller's share is checked
WRITE_TIMEOUT_S: Final = 10.0
QUIET_S: Final = 1.0

log = logging.getLogger("callboard.commits")


class BadRow(CallboardError):
    """Postgres refuses this row, alone too."""


class GroupCommit(Generic[T, R]):
    """Items put by many callers are written together; each caller gets its own result or its own error.

    `write` takes a connection and items and returns one result for each, in order. It must be safe to repeat: after a
    lost connection the same items are written again, whether or not the first commit arrived. `weigh` says how many
    rows an item is: a batch is full at SIZE of them. `warm`: it connects before there is anything to write, so that
    `health` knows whether it could. The meters show how the commits went. `caller_of`: whose items share the places.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], Awaitable[Connection]],
        write: Callable[[Connection, Sequence[T]], Awaitable[Sequence[R]]],
        weigh: Callable[[T], int] = lambda _: 1,
        meters: Meters | None = None,
        *,
        warm: bool = False,
        caller_of: Callable[[T], str] | None = None,
    ) -> None:
        self._meters: Final = meters or Meters()
        self.health: Final = CommitHealth(name, self._meters)
        self._warm: Final = warm
        self._shares: Final = QueueShares(caller_of)
        self._name: Final = name
        self._connect: Final = connect
        self._write: Final = write
        self._weigh: Final = weigh
        self._waiting: Final[deque[tuple[T, asyncio.Future[R], bool]]] = deque()
        self._more: Final = asyncio.Event()
        self._idle: Final = asyncio.Event()
        self._deadlines: Final = Deadlines[asyncio.Future[R] | FutureGroup[R]](self._late)
        self._given_up = 0
        self._seldom: Final = Seldom(QUIET_S)
        self._idle.set()

    async def put(self, item: T, timeout_s: float) -> R:
        """As `begin`, and waits. Raises Unavailable after `timeout_s` too, and BadRow where Postgres refuses it."""
        future = self.begin(item, timeout_s)
        try:
            return await future
        except asyncio.CancelledError:
            self._let_go(1)
            raise

    def begin(self, item: T, timeout_s: float) -> "asyncio.Future[R]":
        """Raises Unavailable when WAITING_MAX items wait, OverLimit where its caller has its share of the places."""
        return self._queue([item], timeout_s)[0]

    def _late(self, late: "asyncio.Future[R] | FutureGroup[R]", timeout_s: float) -> None:
        futures = late.futures if isinstance(late, FutureGroup) else [late]
        for future in futures:
            if not future.done():
                self._let_go(1)
                future.set_exception(self.health.late(timeout_s))

    async def put_all(self, items: Sequence[T], timeout_s: float) -> list[R | Exception]:
        """What each came to, its result or what `put` would raise for it.

        They are written by one writer, in this order: in one statement, or in halves where one of them is bad.
        Raises Unavailable when WAITING_MAX items wait before them, OverLimit where their caller has its share.
        """
        futures = self._queue(items, timeout_s) if items else []
        try:
            return cast("list[R | Exception]", await asyncio.gather(*futures, return_exceptions=True))
        except asyncio.CancelledError:
            self._let_go(len(futures))
            raise

    def _queue(self, items: Sequence[T], timeout_s: float) -> list["asyncio.Future[R]"]:
        if len(self._waiting) * CROWDED >= WAITING_MAX:
            if len(self._waiting) >= WAITING_MAX:
                self._meters.add("callboard_refused_total", (self._name, "all"))
                raise Unavailable(f"{WAITING_MAX} writes wait for Postgres already")
            self._shares.take(items, (waiting[0] for waiting in self._waiting), WAITING_MAX, self.health.reason)
        loop, last = asyncio.get_running_loop(), len(items) - 1
        futures: list[asyncio.Future[R]] = [loop.create_future() for _ in items]
        self._waiting.extend([(item, futures[n], n < last) for n, item in enumerate(items)])
        self._deadlines.hold(FutureGroup(futures) if last else futures[0], timeout_s)
        self._idle.clear()
        self._more.set()
        return futures

    def _let_go(self, given_up: int) -> None:
        """What was given up does not wait for a Postgres that is away for hours: others need its room and memory."""
        self._given_up += given_up
        if self._given_up and self._given_up * 2 >= len(self._waiting):
            waiting_on = [waiting for waiting in self._waiting if not waiting[1].done()]
            self._waiting.clear()
            self._waiting.extend(waiting_on)
            self._given_up = 0
            self._shares.forget()

    async def drained(self) -> None:
        await self._idle.wait()

    async def run(self, writers: int = 1) -> None:
        async with supervised({f"{self._name} {n}": self._writer for n in range(writers)}):
            await asyncio.Event().wait()

    async def _writer(self) -> None:
        held = Held(self._connect)
        try:
            if self._warm:
                await self._warmed(held)
            while True:
                await self._more.wait()
                batch = self._take()
                self.health.writing += 1
                try:
                    await self._commit(held, batch)
                finally:
                    self.health.writing -= 1
                    _fail(batch, Unavailable("the write was given up"))  # whoever still waits: by a bug, or at the end
                if not self._waiting and not self.health.writing:
                    self._idle.set()
        finally:
            held.drop()

    def _take(self) -> list[tuple[T, asyncio.Future[R]]]:
        """What was put together is taken together."""
        batch, room, together = list[tuple[T, asyncio.Future[R]]](), SIZE, False
        while self._waiting and (room > 0 or together):
            item, future, together = self._waiting.popleft()
            batch.append((item, future))
            room -= self._weigh(item)
        if not self._waiting:
            self._more.clear()
        self._shares.forget()
        return [waiting for waiting in batch if not waiting[1].done()]

    async def _commit(self, held: Held, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        """Until written: again after what passes, in halves after a row's fault."""
        tries = 0
        while batch := [waiting for waiting in batch if not waiting[1].done()]:
            begun, connection = self.health.begin(), None
            try:
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    connection = await held.connection()
                    results = await self._write(connection, [item for item, _ in batch])
            except Exception as error:  # noqa: BLE001 - a bug that one row brings to light harms no neighbour
                if not await self._to_be_repeated(held, batch, error, begun=begun, connected=connection is not None):
                    return
                tries += 1
                await self._pause(error, tries, f", {len(batch)} writes wait")
                continue
            self.health.succeeded()
            self._meters.observe("callboard_commit_duration_seconds", time.monotonic() - begun, (self._name,))
            self._meters.observe("callboard_commit_rows", len(batch), (self._name,))
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
            return

    async def _to_be_repeated(
        self, held: Held, batch: list[tuple[T, asyncio.Future[R]]], error: Exception, *, begun: float, connected: bool
    ) -> bool:
        """Whether the cause may pass; where not, each item of the batch has its result or its error."""
        self._meters.add("callboard_commit_failures_total", (self._name,))
        is_bug = not isinstance(error, POSTGRES_ERRORS)
        if is_bug or not is_row_fault(error):
            held.drop()
        if is_bug and connected and self._seldom.now():
            log.error("%s: a bug in writing %d items", self._name, len(batch), exc_info=error)
        if connected and (is_bug or is_row_fault(error)):
            await self._halve(held, batch, error)
            return False
        self.health.failed(error, begun)
        if connected and not postgres_passes(error):
            if self._seldom.now():
                log.error("%s: %d writes refused: %s", self._name, len(batch), _short(error))
            _fail(batch, error)
            return False
        return True

    async def _warmed(self, held: Held) -> None:
        """Until it is connected, or there is something to write, which then meets the same trouble."""
        tries = 0
        while not self._more.is_set():
            begun = self.health.begin()
            try:
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    await held.connection()
            except (*POSTGRES_ERRORS, ValueError) as error:  # the last of the driver, of what it is told to know
                held.drop()
                self.health.failed(error, begun)
                tries += 1
                await self._pause(error, tries)
            else:
                self.health.succeeded()
                return

    async def _pause(self, error: Exception, tries: int, waiting: str = "") -> None:
        if (tries == 1 or tries % 20 == 0) and self.health.reason:
            log.warning("%s: %s%s: %s", self._name, SENTENCES[self.health.reason], waiting, _short(error))
        await asyncio.sleep(backoff_s(tries, cap_s=1.0))

    async def _halve(self, held: Held, batch: list[tuple[T, asyncio.Future[R]]], error: Exception) -> None:
        if len(batch) == 1:
            _fail(batch, BadRow(_short(error)))
            return
        middle = len(batch) // 2
        await self._commit(held, batch[:middle])
        await self._commit(held, batch[middle:])


def _fail(batch: list[tuple[T, asyncio.Future[R]]], error: Exception) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)


def _short(error: BaseException) -> str:
    return text_of(error).splitlines()[0][:200]
