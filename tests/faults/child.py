"""A running program of ours, as a test that hurts it sees it."""

import asyncio
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.eventually import eventually
from tests.faults.proxy import Proxy
from tests.processes import alone

PATIENCE_S: Final = 120.0  # for steps of a test that nothing is promised about


class Child:
    """A running program of ours. With doors, `postgres` and `redis` are the proxies it goes through."""

    def __init__(self, name: str, command: tuple[str, ...], tree: Path, environ: dict[str, str], log: Path) -> None:
        self.name: Final = name
        self.log: Final = log
        self.environ: Final = environ
        self.url = ""
        self.doors: dict[str, Proxy] = {}
        with log.open("ab") as out:
            self.process: Final = subprocess.Popen(
                command, cwd=tree, env=alone(environ), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )

    @property
    def postgres(self) -> Proxy:
        return self.doors["postgres"]

    @property
    def redis(self) -> Proxy:
        return self.doors["redis"]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def tell(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def ended(self, timeout_s: float = PATIENCE_S) -> int:
        """Its exit status; negative: the signal that ended it."""
        try:
            await eventually(lambda: asyncio.sleep(0, not self.running), timeout_s)
        except AssertionError:
            self.tell(signal.SIGABRT)  # it says where it hangs
            await asyncio.to_thread(self.process.wait, PATIENCE_S)
            raise
        return int(self.process.returncode)


def killed(child: Child) -> bool:
    """A failpoint may end it before we see that it has started; by itself it must not end."""
    if not child.running and child.process.returncode >= 0:
        raise RuntimeError(f"{child.name} ended with status {child.process.returncode}: {child.said}")
    return not child.running
