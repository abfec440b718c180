"""The lease: one row per worker, renewed by a thread with its own loop and connection.

A node that blocks the worker's loop does not stop the renewals, so a busy worker is not taken for a dead one; SIGSTOP
stops them, so a frozen one is.
"""

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID, uuid4

import sql
from service.release import release
from service.resources import POSTGRES_ERRORS, Connection, backoff_s, connect
from service.settings import Settings

LEASE: Final = timedelta(seconds=6)
BEAT_S: Final = 2.0
BEAT_TIMEOUT_S: Final = 1.0
JOIN_TIMEOUT_S: Final = 5.0
SQL: Final = sql.queries("lease")

log = logging.getLogger("callboard.lease")


class Lease:
    """The worker's standing in Postgres. Each registration has a new id: a lost lease is never revived."""

    def __init__(self, settings: Settings, pipelines: Sequence[str], in_flight: Callable[[], int]) -> None:
        self.worker: UUID = uuid4()
        self.state = "ready"
        self._settings: Final = settings
        self._pipelines: Final = list(pipelines)
        self._in_flight: Final = in_flight
        self._held = False
        self._stop: Final = threading.Event()

    @property
    def held(self) -> bool:
        """Whether this worker is registered and its lease is being renewed."""
        return self._held

    async def run(self, on_lost: Callable[[], None]) -> None:
        """Keep the heart beating until cancelled; `on_lost` is called on this loop when the lease is lost."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def lost() -> None:
            loop.call_soon_threadsafe(on_lost)

        def beat() -> None:
            try:
                asyncio.run(self._beat_for_ever(lost))
            finally:
                loop.call_soon_threadsafe(_end, ended)

        heart = threading.Thread(target=beat, name="heart", daemon=True)
        heart.start()
        try:
            await ended
            raise RuntimeError("the heart thread ended")
        finally:
            self._stop.set()
            await asyncio.to_thread(heart.join, JOIN_TIMEOUT_S)

    async def _beat_for_ever(self, lost: Callable[[], None]) -> None:
        connection: Connection | None = None
        tries = 0
        try:
            while not self._stop.is_set():
                try:
                    async with asyncio.timeout(BEAT_TIMEOUT_S + (4.0 if connection is None else 0.0)):
                        connection = connection or await connect(self._settings, "heart")
                        await self._beat(connection, lost)
                    tries = 0
                except POSTGRES_ERRORS as error:
                    tries += 1
                    log.warning("the lease could not be renewed: %s", str(error) or type(error).__name__)
                    if connection is not None:
                        connection.terminate()  # not a cancel: that would wait for the server once more
                        connection = None
                await asyncio.to_thread(
                    self._stop.wait, min(BEAT_S, backoff_s(tries, 0.2, BEAT_S)) if tries else BEAT_S
                )
            await self._leave(connection)
        finally:
            if connection is not None:
                connection.terminate()

    async def _beat(self, connection: Connection, lost: Callable[[], None]) -> None:
        if not self._held:
            await self._register(connection)
            return
        row = await connection.fetchrow(SQL["beat"], self.worker, LEASE, self.state, self._in_flight())
        if row is None:
            self._held = False
            log.error("worker %s lost its lease; it registers anew", self.worker)
            lost()
            await self._register(connection)

    async def _register(self, connection: Connection) -> None:
        worker = uuid4()
        who = (socket.gethostname(), os.getpid(), release(), LEASE, self._settings.concurrency, self._pipelines)
        await connection.execute(SQL["register"], worker, *who)
        self.worker = worker
        self._held = True

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
