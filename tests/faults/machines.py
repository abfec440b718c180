"""The two servers behind a rig: really killed, frozen, started again."""

import os
import random
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from service.embedded import Server, start_postgres, start_redis, stop
from tests.faults.usercode import FILES, copy_product
from tests.processes import all_gone, descendants

PORTS: Final = (20_000, 32_000)


def own_port() -> int:
    """Free, and below those that connections get: one that its program leaves for a moment, nobody else is given."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", random.SystemRandom().randrange(*PORTS)))
            return int(probe.getsockname()[1])


class Machine:
    """A server that can be ended and comes back with the same address and the same data."""

    def __init__(self, start: Callable[[], Awaitable[Server]]) -> None:
        self._start: Final = start
        self._server: Server | None = None

    @property
    def server(self) -> Server:
        assert self._server is not None, "not started"
        return self._server

    @property
    def running(self) -> bool:
        return self._server is not None and self._server.process.poll() is None

    async def start(self) -> None:
        if not self.running:
            await self.stop()
            self._server = await self._start()

    def give_way(self, server: Server) -> None:
        """This one, which has ended, is at its address from now on, until it ends too."""
        assert not self.running
        self._server = server

    async def kill(self) -> None:
        """SIGKILL for it and all its children at once: a crash."""
        pids = {self.server.pid, *descendants(self.server.pid)}
        self._tell(pids, signal.SIGKILL)
        self.server.process.wait(10)
        await all_gone(pids)
        await self.stop()

    async def stop(self) -> None:
        """In order; does nothing when it has ended."""
        if self._server is not None:
            await stop(self._server)
            self._server = None

    def freeze(self) -> None:
        self._tell({self.server.pid, *descendants(self.server.pid)}, signal.SIGSTOP)

    def thaw(self) -> None:
        self._tell({self.server.pid, *descendants(self.server.pid)}, signal.SIGCONT)

    def _tell(self, pids: set[int], number: signal.Signals) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


class Machines:
    """Postgres and Redis of one test process; both run again at the beginning of each rig."""

    def __init__(self, folder: Path) -> None:
        self.redis_port: Final = own_port()
        self.folder: Final = folder
        self.postgres: Final = Machine(lambda: start_postgres(folder / "postgres"))
        self.redis: Final = Machine(self._start_redis)

    @cached_property
    def tree(self) -> Path:
        """The product with the probes, compiled once."""
        return copy_product(self.folder / "tree", FILES)

    async def _start_redis(self) -> Server:
        """On a port, for the proxies, and with every command, for the faults."""
        options = {"port": str(self.redis_port), "bind": "127.0.0.1", "user": "default on nopass ~* &* +@all"}
        return await start_redis(self.folder / "redis", options)

    @property
    def socket(self) -> str:
        """The Unix socket of Postgres."""
        asked = parse_qs(urlsplit(self.postgres.server.url).query)
        return f"{asked['host'][0]}/.s.PGSQL.{asked['port'][0]}"

    async def start(self) -> None:
        for each in (self.postgres, self.redis):
            if each.running:
                each.thaw()
            await each.start()

    async def stop(self) -> None:
        for each in (self.redis, self.postgres):
            if each.running:
                each.thaw()
            await each.stop()
