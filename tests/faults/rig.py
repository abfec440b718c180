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
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import asyncpg
import httpx
from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.migrate import migrate
from service.settings import Settings
from service.supervise import end
from tests.eventually import eventually
from tests.faults import audit
from tests.faults.load import Load
from tests.faults.machines import Machines, own_port
from tests.faults.proxy import Proxy, Streams, proxy_to
from tests.faults.sink import Sink, open_sink
from tests.faults.usercode import copy_product
from tests.processes import alone

START_S: Final = 120.0  # the imports of a program are three seconds of a processor that may have much else to do
GRACE_S: Final = 5
STOP_S: Final = 10.0  # behind the grace: a program ends itself after four, and may have to wait for a processor
PATIENCE_S: Final = 120.0  # for steps of a test that nothing is promised about
STREAMS: Final = ("callboard:work", "callboard:front")
DATABASE: Final = "rig"


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
            await eventually(lambda: _fact(not self.running), timeout_s)
        except AssertionError:
            self.tell(signal.SIGABRT)  # it says where it hangs
            await asyncio.to_thread(self.process.wait, PATIENCE_S)
            raise
        return int(self.process.returncode)


class Held(Struct, frozen=True):
    """A claim that a worker held at the moment it was struck."""

    event_id: str
    claim: int
    struck_at: float


class Rig:
    """Everything one test of a fault needs; see the module's docstring."""

    def __init__(self, machines: Machines, sink: Sink, folder: Path, seed: int, stack: AsyncExitStack) -> None:
        self.machines: Final = machines
        self.postgres: Final = machines.postgres
        self.redis: Final = machines.redis
        self.sink: Final = sink
        self.seed: Final = seed
        self.random: Final = random.Random(seed)
        self.load: Final = Load(self)
        self.children: Final[list[Child]] = []
        self.held: Final[list[Held]] = []
        self.faults = 0
        self.length_max = 0
        self.expects_s = 30.0
        self.nice = 0  # of the programs; below 0, where we may, for a row that measures them and not its neighbours
        self.rest_s = 0.0
        self.extra_rings = 0  # entries that the test itself puts on the streams
        self.forgets = False  # whether Redis was made to lose its memory
        self.lost = self.doubled = 0
        self.takeovers_s: list[float] = []
        self._folder: Final = folder
        self._stack: Final = stack
        self._alone: Final = asyncio.Lock()
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self.client: Final = Redis.from_url(f"redis://127.0.0.1:{machines.redis_port}/0", socket_timeout=2)

    # -- programs

    async def api(self, **told: Any) -> Child:
        """Start an API and wait until it answers. `port=` takes the place of one that ended."""
        told["port"] = told.get("port") or own_port()
        child = await self._spawn("api", "service", told)
        child.url = f"http://127.0.0.1:{told['port']}"
        async with httpx.AsyncClient(base_url=child.url, timeout=5) as http:
            await self._until(child, lambda: self._answers(http, child))
        return child

    async def worker(self, *, wait: bool = True, **told: Any) -> Child:
        """Start a worker and, unless told not to, wait until it is registered."""
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
        return [each for each in self.children if each.url and each.running]

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
        gates = await self._doors() if doors else {}
        model: Proxy | None = told.pop("model", None)
        number = len(self.children) + 1
        environ = {
            "DATABASE_URL": _through(gates.get("postgres")) or self.database_url,
            "REDIS_URL": f"redis://127.0.0.1:{gates['redis'].port if gates else self.machines.redis_port}/0",
            "OPENAI_API_KEY": "dummy",
            "OPENAI_BASE_URL": f"{f'http://127.0.0.1:{model.port}' if model else self.sink.url}/v1",
            "PAGE_URL": f"{self.sink.url}/effects",
            "CALLBOARD_SIMULATE": "off",
            "CALLBOARD_BUDGET_DAY_USD": "1000",
            "CALLBOARD_GRACE_S": str(GRACE_S),
            "CALLBOARD_DATA_DIR": str(self._folder),
            "PYTHONWARNINGS": "ignore",
            "PYTHONFAULTHANDLER": "1",
            **{f"CALLBOARD_{each.upper()}": str(value) for each, value in told.items()},
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
        if _killed(child):
            return True
        with suppress(httpx.TransportError):
            return (await http.get("/readyz")).status_code == 200
        return False

    async def _registered(self, child: Child) -> bool:
        return _killed(child) or bool(
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

    async def claims(self, child: Child) -> list[asyncpg.Record]:
        return await self.sql(
            "select event_id, claim from work join workers using (worker) where pid = $1 and status = 'running'",
            child.pid,
        )

    # -- looking behind

    @property
    def database_url(self) -> str:
        head, _, query = self.machines.postgres.server.url.partition("?")
        return f"{head.rpartition('/')[0]}/{DATABASE}?{query}"

    async def sql(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        """On one connection of the test's own: a new one for each poll would take what the programs need."""
        async with self._alone:
            return list(await (await self._session()).fetch(statement, *arguments, timeout=30))

    async def script(self, statements: str) -> None:
        async with self._alone:
            await (await self._session()).execute(statements)

    async def _session(self) -> "asyncpg.Connection[asyncpg.Record]":
        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(self.database_url, timeout=10)
        return self._connection

    async def close(self) -> None:
        await self.load.http.aclose()
        await self.client.aclose()
        if self._connection is not None:
            self._connection.terminate()

    async def quiet(self, still_open: Iterable[UUID] = ()) -> bool:
        """Whether nothing is on its way but `still_open`, and nothing pends in Redis."""
        left = await self.sql("select 1 from work where event_id <> all ($1::uuid[]) limit 1", list(still_open))
        unrelayed = await self.sql("select 1 from dead_letters where not relayed limit 1")
        return not left and not unrelayed and await self.pending() == 0

    async def pending(self) -> int:
        """Entries read and not acknowledged, and entries not read, over both streams."""
        found = 0
        for name in STREAMS:
            found += int(await self.client.xlen(name))
        return found

    async def _watch(self) -> None:
        """The longest the streams have been (I5)."""
        while True:
            with suppress(RedisError, OSError, TimeoutError):
                self.length_max = max(self.length_max, await self.pending())
            await asyncio.sleep(0.1)


def percentile(samples: Sequence[float], share: float) -> float:
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * share))]


def _killed(child: Child) -> bool:
    """A failpoint may end it before we see that it has started; by itself it must not end."""
    if not child.running and child.process.returncode >= 0:
        raise RuntimeError(f"{child.name} ended with status {child.process.returncode}: {child.said}")
    return not child.running


async def _fact(fact: bool) -> bool:
    return fact


def _through(door: Proxy | None) -> str:
    return f"postgresql://callboard@127.0.0.1:{door.port}/{DATABASE}?sslmode=disable" if door else ""


@asynccontextmanager
async def open_rig(machines: Machines, folder: Path, seed: int) -> AsyncIterator[Rig]:
    """A rig with an empty, migrated database and an empty Redis; ends every program it started."""
    await machines.start()
    await _empty(machines)
    async with AsyncExitStack() as stack:
        sink = await stack.enter_async_context(open_sink())
        rig = Rig(machines, sink, folder, seed, stack)
        stack.push_async_callback(rig.close)
        stack.push_async_callback(_end, rig.children)
        await rig.client.flushall()
        await migrate(Settings(database_url=rig.database_url))
        await rig.script(audit.SCHEMA)
        rig.background(rig._watch())
        yield rig


async def _empty(machines: Machines) -> None:
    connection = await asyncpg.connect(machines.postgres.server.url, timeout=10)
    try:
        await connection.execute(f"drop database if exists {DATABASE} with (force)")
        await connection.execute(f"create database {DATABASE}")
    finally:
        await connection.close()


async def _end(children: list[Child]) -> None:
    for each in children:
        each.tell(signal.SIGKILL)
    for each in children:
        await each.ended()
