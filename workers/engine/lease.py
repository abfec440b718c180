"""The lease: one row per worker, renewed by a thread with its own loop and connection.

A node that blocks the worker's loop does not stop the renewals, so a busy worker is not taken for a dead one; SIGSTOP
stops them, so a frozen one is.
"""

import asyncio
import faulthandler
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID, uuid4

import sql
from service.core.errors import text_of
from service.core.release import release
from service.core.servers import CONNECT_TIMEOUT_S, POSTGRES_ERRORS, Connection, backoff_s, connect
from service.core.settings import Settings
from service.core.time_limit import our_wait

LEASE: Final = timedelta(seconds=6)
BEAT_S: Final = 2.0
BEAT_TIMEOUT_S: Final = 1.0
# Through an outage that leaves no longer gap than this, nobody's lease runs out.
GAP_MAX_S: Final = LEASE.total_seconds() - BEAT_S
JOIN_TIMEOUT_S: Final = 5.0
STALE_POLL_S: Final = 0.1
TICK_S: Final = 1.0
BLOCKED_MAX_S: Final = 30.0
BLOCKED_STATUS: Final = 70
SQL: Final = sql.queries("lease")

State = tuple[str, str | None]
"""What the worker's row says of it, and why."""

log = logging.getLogger("callboard.lease")


class Lease:
    """The worker's standing in Postgres. Each registration has a new id: a lost lease is never revived."""

    def __init__(
        self,
        settings: Settings,
        pipelines: Sequence[str],
        in_flight: Callable[[], int],
        state: Callable[[], State],
        is_debugged: Callable[[], bool] = lambda: False,
    ) -> None:
        self.worker: UUID = uuid4()
        self.alive = 1  # workers, this one among them
        self._settings: Final = settings
        self._pipelines: Final = list(pipelines)
        self._in_flight: Final = in_flight
        self._state: Final = state
        self._is_debugged: Final = is_debugged
        self._held = False
        self._renewed_at = 0.0
        self._steady_since = 0.0
        self._ticked_at = 0.0
        self._beat_at = 0.0
        self._stop: Final = threading.Event()

    @property
    def held(self) -> bool:
        """Whether this worker is registered and its last renewal is younger than the lease."""
        return self._held and time.monotonic() - self._renewed_at < LEASE.total_seconds()

    @property
    def steady(self) -> bool:
        """Whether it was renewed without a gap for a whole lease: after an outage, renew before you judge."""
        return self.held and time.monotonic() - self._steady_since >= LEASE.total_seconds()

    async def guard(self) -> UUID:
        """Wait until the lease is held: nothing is started under one that may have been lost. Whose it is then."""
        if not self.held:
            with our_wait():
                while not self.held:
                    await asyncio.sleep(STALE_POLL_S)
        return self.worker

    async def run(self, on_lost: Callable[[], None]) -> None:
        """Keep the heartbeat going until cancelled; `on_lost` is called on this loop when the lease is lost."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        self._stop.clear()
        self._ticked_at = time.monotonic()

        def beat() -> None:
            try:
                asyncio.run(self._beat_for_ever(lambda: loop.call_soon_threadsafe(on_lost)))
            finally:
                loop.call_soon_threadsafe(_end, ended)

        heartbeat = threading.Thread(target=beat, name="heartbeat", daemon=True)
        heartbeat.start()
        try:
            while not ended.done():
                self._ticked_at = time.monotonic()
                await asyncio.wait([ended], timeout=TICK_S)
            raise RuntimeError("the thread of the heartbeat ended")
        finally:
            self._stop.set()
            await asyncio.to_thread(heartbeat.join, JOIN_TIMEOUT_S)

    async def _beat_for_ever(self, lost: Callable[[], object]) -> None:
        connection: Connection | None = None
        tries = 0
        try:
            while not self._stop.is_set():
                self._check_loop()
                try:
                    async with asyncio.timeout(BEAT_TIMEOUT_S + (0.0 if connection else CONNECT_TIMEOUT_S)):
                        connection = connection or await connect(self._settings, "heartbeat")
                        await self._beat(connection, lost)
                    tries = 0
                except POSTGRES_ERRORS as error:
                    tries += 1
                    log.warning("the lease could not be renewed: %s", text_of(error))
                    if connection is not None:
                        connection.terminate()  # not a cancel: that would wait for the server once more
                        connection = None
                pause_s = min(BEAT_S, 0.1 + backoff_s(tries, 0.2, BEAT_S)) if tries else BEAT_S
                await asyncio.to_thread(self._stop.wait, pause_s)
            await self._leave(connection)
        finally:
            if connection is not None:
                connection.terminate()

    async def _beat(self, connection: Connection, lost: Callable[[], object]) -> None:
        asked_at = time.monotonic()
        if self._held:
            row = await connection.fetchrow(SQL["beat"], self.worker, LEASE, *self._state(), self._in_flight())
            if row is not None:
                self.alive = row["alive"]
                self._renewed(asked_at)
                if self._is_debugged():
                    await connection.execute(SQL["hold_deadlines"], self.worker)
                return
            self._held = False
            log.error("worker %s lost its lease; it registers anew", self.worker)
            lost()
        await self._register(connection)

    async def _register(self, connection: Connection) -> None:
        worker, asked_at = uuid4(), time.monotonic()
        settings = self._settings
        who = (socket.gethostname(), os.getpid(), release(), LEASE)
        how = (settings.concurrency, self._pipelines, settings.simulated)
        await connection.execute(SQL["register"], worker, *who, *how)
        self._renewed_at = self._steady_since = asked_at
        self.worker, self._held = worker, True

    def _renewed(self, asked_at: float) -> None:
        if asked_at - self._renewed_at > GAP_MAX_S:
            self._steady_since = asked_at
        self._renewed_at = asked_at

    def _check_loop(self) -> None:
        """A loop that has not run for so long will not come back: better to end, and say where it hangs.

        Where this thread did not run either, the whole process stood still, and the loop gets its chance first. Where
        somebody has stopped it in a debugger, it is for him to let it go on.
        """
        now, last_at = time.monotonic(), self._beat_at
        self._beat_at = now
        blocked_s = now - self._ticked_at
        if blocked_s > BLOCKED_MAX_S and now - last_at < LEASE.total_seconds() * 2 and not self._is_debugged():
            log.critical("the event loop has not run for %.0f s; this worker ends. Where it hangs:", blocked_s)
            faulthandler.dump_traceback(sys.__stderr__ or sys.stderr, all_threads=True)
            os._exit(BLOCKED_STATUS)

    async def _leave(self, connection: Connection | None) -> None:
        """Without this the row would stay until its lease runs out; nobody depends on it."""
        self._held = False
        try:
            if connection is not None:
                async with asyncio.timeout(BEAT_TIMEOUT_S):
                    await connection.execute(SQL["leave"], self.worker)
        except POSTGRES_ERRORS as error:
            log.warning("could not say that this worker stops: %s", error)


def _end(ended: "asyncio.Future[None]") -> None:
    if not ended.done():
        ended.set_result(None)
