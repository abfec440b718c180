"""The rig: our real programs as child processes, against a real Postgres and a real Redis that can be hurt.

    async def test_row_99_something(rig: Rig) -> None:
        rig.expects_s = 30                          # I6: the longest pause until all is at rest, 30 s unless told
        await rig.api()                             # `python -m service`; each call starts one more
        one = await rig.worker(concurrency=50)      # `python -m workers`; keywords are settings (CALLBOARD_…)
        two = await rig.worker(doors=True)          # behind its own proxies: two.redis.turn("blackhole"), two.postgres
        load = asyncio.create_task(rig.load.burst(200, ["probe.once", "probe.ask"], keys=10))
        await rig.load.accepted(50)                 # until 50 have their 202
        await rig.kill(one)                         # also freeze, thaw; rig.postgres.kill() / .freeze() / .start()
        await load
        await judge(rig)                            # waits until all is quiet, then I1-I7 (oracle.py)

Choose times and victims with `rig.random`, which the seed drives. Count each injected fault with `rig.injected()`: the
table of `make faults` shows it. `rig.sql()` and `rig.client` (Redis) look behind; both go straight to the servers.
What programs run is usercode.py: probe.once, probe.slow(seconds), probe.ask (two calls of a model), probe.poison(how),
probe.crash, probe.block(seconds). The model and the web hook are `rig.sink`; its logs outlive every program.
"""

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final

import httpx
from msgspec import Struct

from service.core.supervise import end
from tests.eventually import eventually
from tests.faults.behind import DATABASE, Behind
from tests.faults.child import PATIENCE_S, Child, killed
from tests.faults.load import Load
from tests.faults.machines import Machines, own_port
from tests.faults.proxy import Proxy, Streams, proxy_to
from tests.faults.sink import Sink
from tests.faults.usercode import copy_product
from tests.keys import AT_HOME, TOKEN

START_S: Final = 120.0  # the imports of a program are three seconds of a processor that may have much else to do
GRACE_S: Final = 5
STOP_S: Final = 10.0  # behind the grace: a program ends itself after four, and may have to wait for a processor


class Held(Struct, frozen=True):
    """A claim that a worker held at the moment it was struck."""

    event_id: str
    claim: int
    struck_at: float


class Rig(Behind):
    """Everything one test of a fault needs; see the module's docstring."""

    def __init__(self, machines: Machines, sink: Sink, folder: Path, seed: int, stack: AsyncExitStack) -> None:
        super().__init__(machines)
        self.postgres: Final = machines.postgres
        self.redis: Final = machines.redis
        self.sink: Final = sink
        self.seed: Final = seed
        self.random: Final = random.Random(seed)
        self.load: Final = Load(self)
        self.children: Final[list[Child]] = []
        self.held: Final[list[Held]] = []
        self.faults = 0
        self.expects_s = 30.0
        self.nice = 0  # of the programs; below 0, where we may, for a row that measures them and not its neighbours
        self.rest_s = 0.0
        self.extra_rings = 0  # entries that the test itself puts on the streams
        self.forgets = False  # whether Redis was made to lose its memory
        self.lost = self.doubled = 0
        self.takeovers_s: list[float] = []
        self._folder: Final = folder
        self._stack: Final = stack

    # -- programs

    async def api(self, **told: Any) -> Child:
        """Start an API and wait until it answers. `port=` takes the place of one that ended."""
        told["port"] = told.get("port") or own_port()
        child = await self._spawn("api", "service", told)
        child.url = f"http://127.0.0.1:{told['port']}"
        async with httpx.AsyncClient(headers=AT_HOME, base_url=child.url, timeout=5) as http:
            await self._until(child, lambda: self._answers(http, child))
        return child

    async def worker(self, *, wait: bool = True, **told: Any) -> Child:
        """Start a worker and, unless told not to, wait until it is registered. `environ`: variables of its own."""
        child = await self._spawn("worker", "workers", told)
        if wait:
            await self._until(child, lambda: self._registered(child))
        return child

    async def start(self, name: str, **told: Any) -> Child:
        """Start an `api` or a `worker` and wait for nothing."""
        module = {"api": "service", "worker": "workers"}[name]
        return await self._spawn(name, module, {"port": own_port(), **told})

    @property
    def apis(self) -> list[Child]:
        return [child for child in self.children if child.url and child.running]

    async def keep(self, start: Callable[[], Awaitable[Child]]) -> None:
        """Start a program, and another whenever it has ended, as a supervisor of the machine would, to the test's end.
        Each end counts as a fault."""
        child = await start()

        async def tend() -> None:
            nonlocal child
            while True:
                if not child.running:
                    self.injected()
                    child = await start()
                await asyncio.sleep(0.05)

        self.background(tend())

    def background(self, work: Any) -> None:
        """Let a coroutine run until the test ends."""
        self._stack.push_async_callback(end, [asyncio.create_task(work)])

    async def model(self) -> Proxy:
        """A proxy to the model's provider, for `model=`."""
        port = int(self.sink.url.rpartition(":")[2])
        return await self._stack.enter_async_context(proxy_to(lambda: asyncio.open_connection("127.0.0.1", port)))

    def newer(self, files: dict[str, str]) -> Path:
        """Another tree of the product, for `tree=`."""
        return copy_product(self._folder / "newer", files)

    async def _spawn(self, name: str, module: str, told: dict[str, Any]) -> Child:
        tree, doors = told.pop("tree", self.machines.tree), told.pop("doors", False)
        own: dict[str, str] = told.pop("environ", {})
        gates = await self._doors() if doors else {}
        model: Proxy | None = told.pop("model", None)
        database_url: str = told.pop("database_url", "") or _through(gates.get("postgres")) or self.database_url
        number = len(self.children) + 1
        environ = {
            "DATABASE_URL": database_url,
            "REDIS_URL": f"redis://127.0.0.1:{gates['redis'].port if gates else self.machines.redis_port}/0",
            "OPENAI_API_KEY": "dummy",
            "ANTHROPIC_API_KEY": "dummy",
            "ANTHROPIC_BASE_URL": self.sink.url,
            "OPENAI_BASE_URL": f"{f'http://127.0.0.1:{model.port}' if model else self.sink.url}/v1",
            "PAGE_URL": f"{self.sink.url}/effects",
            "CALLBOARD_LOCAL_TOKEN": TOKEN,
            "CALLBOARD_SIMULATE": "off",
            "CALLBOARD_BUDGET_DAY_USD": "1000",
            "CALLBOARD_GRACE_S": str(GRACE_S),
            "CALLBOARD_DATA_DIR": str(self._folder),
            "PYTHONWARNINGS": "ignore",
            "PYTHONFAULTHANDLER": "1",
            **{f"CALLBOARD_{each.upper()}": str(value) for each, value in told.items()},
            **own,
        }
        log = self._folder / f"{number}-{name}.log"
        child = Child(f"{name} {number}", (sys.executable, "-m", module), tree, environ, log)
        child.doors = gates
        self.children.append(child)
        if self.nice:
            with suppress(PermissionError, ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, child.pid, self.nice)
        return child

    async def _doors(self) -> dict[str, Proxy]:
        async def to_postgres() -> Streams:
            return await asyncio.open_unix_connection(self.machines.socket)

        async def to_redis() -> Streams:
            return await asyncio.open_connection("127.0.0.1", self.machines.redis_port)

        return {
            "postgres": await self._stack.enter_async_context(proxy_to(to_postgres)),
            "redis": await self._stack.enter_async_context(proxy_to(to_redis)),
        }

    async def _until(self, child: Child, started: Callable[[], Awaitable[bool]]) -> None:
        try:
            await eventually(started, START_S)
        except AssertionError:
            await child.ended(0)
            raise

    async def _answers(self, http: httpx.AsyncClient, child: Child) -> bool:
        if killed(child):
            return True
        with suppress(httpx.TransportError):
            return (await http.get("/readyz")).status_code == 200
        return False

    async def _registered(self, child: Child) -> bool:
        return killed(child) or bool(
            await self.sql("select 1 from workers where pid = $1 and state = 'ready'", child.pid)
        )

    async def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """A request to any API, once."""
        return await self.load.http.request(method, f"{self.random.choice(self.apis).url}{path}", json=body)

    # -- faults

    def injected(self, times: int = 1) -> None:
        self.faults += times

    async def kill(self, child: Child) -> list[Held]:
        """SIGKILL; returns the claims it held, whose takeovers will be measured."""
        child.tell(signal.SIGKILL)
        struck_at = time.time()
        await child.ended()
        return await self._struck(child, struck_at)

    async def freeze(self, child: Child) -> list[Held]:
        """SIGSTOP, else as `kill`."""
        child.tell(signal.SIGSTOP)
        return await self._struck(child, time.time())

    def thaw(self, child: Child) -> None:
        child.tell(signal.SIGCONT)

    async def _struck(self, child: Child, struck_at: float) -> list[Held]:
        self.injected()
        held = [Held(str(row["event_id"]), row["claim"], struck_at) for row in await self.claims(child)]
        self.held.extend(held)
        return held

    async def full(self, child: Child, count: int, timeout_s: float = PATIENCE_S) -> None:
        """Until the worker holds so many claims."""

        async def fact() -> bool:
            return len(await self.claims(child)) >= count

        await eventually(fact, timeout_s)


def _through(door: Proxy | None) -> str:
    return f"postgresql://callboard@127.0.0.1:{door.port}/{DATABASE}?sslmode=disable" if door else ""


def percentile(samples: Sequence[float], share: float) -> float:
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * share))]
