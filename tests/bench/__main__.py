"""`make bench`: ratios, side by side in one run, on servers of its own. Times depend on the machine; ratios less so.

`make bench-quick` (`--quick`) is the same in a minute, with fewer events, and fails where a ratio is below FLOORS.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from msgspec import Struct, json
from redis.asyncio import Redis

from schemas.envelope import Attributes, Incoming
from schemas.identity import uuid7
from service.core import streams
from service.core.migrate import migrate
from service.core.servers import Connection, connect
from service.core.settings import Settings
from service.intake.store import accept
from tests.bench import posting
from tests.eventually import eventually
from tests.keys import AS_UP_DOES
from tests.processes import ROOT, alone, free_port, started
from tests.results import record
from tests.servers import NAMES, open_folder, postgres, redis

CALLS: Final = 3
SLOTS: Final = 200
WARM: Final = 100
LATENCY_MS: Final = 200
TIMEOUT_S: Final = 120.0
RESULTS: Final = Path(__file__).with_name("RESULTS.md")
PIECE: Final = 1000
BATCH: Final = 100
TEXT: Final = json.encode({"text": "My card was charged twice this month."})

SDK: Final = "the SDK alone, on aiohttp"
WORKER: Final = "through the worker"
ROUTE: Final = "accepted by a bare route of Starlette: decoded, one row inserted"
POST: Final = "accepted by `POST /events`"
TOGETHER: Final = f"accepted by `POST /events/batch`, {BATCH} at a time"
DRAIN: Final = "run by a worker that found them waiting: one node that does nothing"
FLOORS: Final = {(WORKER, SDK): 0.8, (POST, ROUTE): 0.9, (TOGETHER, POST): 2.5, (DRAIN, POST): 0.4}
"""The least ratio of two rates in a short run. Of the first a long run has at least 0.8, too; the others are about two
thirds of what `make bench` measures, since a short run on a shared machine is noisy."""


class Size(Struct, frozen=True):
    """How much is measured: `posted` ten times where many come together; the better of `rounds` counts."""

    events: int = 1000
    rounds: int = 2
    drained: int = 20_000
    posted: int = 5000


QUICK: Final = Size(events=300, rounds=1, drained=5000, posted=2000)


class Took(Struct, frozen=True):
    """Of all the calls of a round: seconds of a processor, and seconds."""

    cpu_s: float
    s: float


class Bench(Struct, frozen=True):
    """A worker under way, and hands to give it something to do."""

    connection: Connection
    redis: Redis
    size: Size

    async def put(self, kind: str, count: int, data: bytes = b"{}") -> list[UUID]:
        """Stored, and workers notified."""
        ids = [uuid7() for _ in range(count)]
        for begin in range(0, count, PIECE):
            piece = ids[begin : begin + PIECE]
            said = [Incoming(each, "/bench", str(each), kind, None, None, Attributes(), data) for each in piece]
            await accept(self.connection, said)
            await streams.notify(self.redis, piece, NAMES.work)
        return ids

    async def run(self, kind: str, count: int, data: bytes = b"{}") -> float:
        """Seconds from the first one's acceptance to the last one's end."""
        ids = await self.put(kind, count, data)
        await eventually(lambda: self.connection.fetchval("select not exists (select 1 from work)"), TIMEOUT_S)
        row = await self.connection.fetchrow(
            "select max(finished_at) - min(accepted_at) as took, count(*) filter (where status = 'succeeded') as well"
            " from events where event_id = any ($1::uuid[])",
            ids,
        )
        assert row is not None
        assert row["well"] == count, await self.connection.fetch("select error from events where error is not null")
        return float(row["took"].total_seconds())

    async def drained(self, kind: str, count: int) -> float:
        """Seconds from the first one's claim to the last one's end, of those that wait for a worker that starts now."""
        await eventually(lambda: self.connection.fetchval("select not exists (select 1 from work)"), TIMEOUT_S)
        took = await self.connection.fetchval(
            "select max(a.finished_at) - min(started_at) from attempts a join events using (event_id) where type = $1",
            kind,
        )
        done = await self.connection.fetchval(
            "select count(*) from events where type = $1 and status = 'succeeded'", kind
        )
        assert done == count
        return float(took.total_seconds())

    async def cpu_s(self) -> float:
        """What the worker has used so far."""
        (event_id,) = await self.put("bench.clock", 1)
        return float(await eventually(lambda: self._result(event_id), TIMEOUT_S))

    async def round(self) -> Took:
        before_s = await self.cpu_s()
        took_s = await self.run("bench.thrice", self.size.events, TEXT)
        return Took(await self.cpu_s() - before_s, took_s)

    async def _result(self, event_id: UUID) -> Any:
        return await self.connection.fetchval("select result from events where event_id = $1", event_id)


async def main(size: Size) -> dict[str, float]:
    """Print the tables; returns each rate, a second."""
    with open_folder() as folder:
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(postgres(folder / "postgres"))
            bell = await stack.enter_async_context(redis(folder / "redis"))
            settings = Settings(database_url=store.url, redis_url=bell.url)
            await migrate(settings)
            connection = await connect(settings, "bench")
            stack.push_async_callback(connection.close)
            client = await stack.enter_async_context(Redis.from_url(bell.url))
            url = await stack.enter_async_context(_simulator(folder))
            return await _measure(Bench(connection, client, size), settings, folder, url)


async def _measure(bench: Bench, settings: Settings, folder: Path, url: str) -> dict[str, float]:
    size, environ = bench.size, {"OPENAI_API_KEY": "bench", "OPENAI_BASE_URL": f"{url}/v1"}
    rounds: dict[str, list[Took]] = {"the SDK alone": [], SDK: [], WORKER: []}
    with _worker(settings, folder, environ):
        await eventually(lambda: bench.connection.fetchval("select 1 from workers"), TIMEOUT_S)
        await bench.run("bench.thrice", WARM, TEXT)
        for _ in range(size.rounds):
            for name, transport in zip(rounds, ("default", "aiohttp"), strict=False):
                rounds[name].append(await asyncio.to_thread(_bare, transport, size.events, environ))
            rounds[WORKER].append(await bench.round())
    await bench.put("bench.nothing", size.drained)
    with _worker(settings, folder, environ):
        drained_s = await bench.drained("bench.nothing", size.drained)
    calls = size.events * CALLS
    rates = {name: calls / min(timing.s for timing in took) for name, took in rounds.items()}
    cpus_ms = {name: min(timing.cpu_s for timing in took) / calls * 1000 for name, took in rounds.items()}
    events = {**await _accepting(settings, folder, size), DRAIN: size.drained / drained_s}
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, Python {sys.version.split()[0]}, {os.cpu_count()} cores for all of it;",
        f"the better of {size.rounds} rounds of {size.events} events of {CALLS} calls of {LATENCY_MS} ms,",
        f"{SLOTS * CALLS} calls at a time\n",
        "| calls of a model | CPU per call | calls/s | of the SDK on aiohttp |\n| --- | --- | --- | --- |",
        *(
            f"| {name} | {cpus_ms[name]:.2f} ms | {rates[name]:.0f} | {rates[name] / rates[SDK]:.2f} |"
            for name in rounds
        ),
        "\n| events | events/s |\n| --- | --- |",
        *(f"| {name} | {rate:,.0f} |" for name, rate in events.items()),
    ]
    tables = "\n".join(lines)
    print(tables)
    if size != QUICK:
        record(RESULTS, f"{tables}\n")
    return rates | events


def below(rates: Mapping[str, float]) -> list[str]:
    """A sentence for each ratio that is below its floor."""
    return [
        f"{name}: {rates[name] / rates[other]:.2f} of {other}, and {floor} is the least."
        for (name, other), floor in FLOORS.items()
        if rates[name] < floor * rates[other]
    ]


async def _accepting(settings: Settings, folder: Path, size: Size) -> dict[str, float]:
    """Events a second, the better of the rounds."""
    ours, bare = free_port(), free_port()
    addresses = {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url}
    api = ((sys.executable, "-m", "service"), {**addresses, **AS_UP_DOES, "CALLBOARD_PORT": str(ours)})
    route = ((sys.executable, "-m", "tests.bench.route", str(bare)), addresses)
    rates: dict[str, float] = {}
    with started(api[0], folder / "api.log", api[1]), started(route[0], folder / "route.log", route[1]):
        for _ in range(size.rounds + 1):  # the first one warms up
            for name, port, together in ((ROUTE, bare, 1), (POST, ours, 1), (TOGETHER, ours, BATCH)):
                posted = size.posted * (1 if together == 1 else 10)
                rates[name] = max(await posting.rate(port, posted, together), rates.get(name, 0.0))
    return rates


def _bare(transport: str, events: int, environ: Mapping[str, str]) -> Took:
    command = (sys.executable, "-m", "tests.bench.bare", transport, str(events), str(SLOTS))
    process = subprocess.run(
        command, cwd=ROOT, env=alone(environ), stdout=subprocess.PIPE, check=True, timeout=TIMEOUT_S
    )
    return json.decode(process.stdout, type=Took)


@asynccontextmanager
async def _simulator(folder: Path) -> AsyncIterator[str]:
    port = free_port()
    behaviour = {"latency_ms": LATENCY_MS, "latency_p99_ms": LATENCY_MS}
    told = json.encode({"port": port, "behaviour": behaviour}).decode()
    with started((sys.executable, "-m", "workers.simulator", told), folder / "simulator.log", {}) as program:
        await program.says("answer at")
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _worker(settings: Settings, folder: Path, environ: Mapping[str, str]) -> Iterator[None]:
    told = {
        **environ,
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "CALLBOARD_SIMULATE": "off",
        "CALLBOARD_CONCURRENCY": str(SLOTS),
        "CALLBOARD_BUDGET_DAY_USD": "1000",
    }
    command = (sys.executable, "-m", "tests.bench.worker", str(folder / "prompts"))
    with started(command, folder / "worker.log", told):
        yield


if __name__ == "__main__":
    quick = "--quick" in sys.argv[1:]
    measured = asyncio.run(main(QUICK if quick else Size()))
    if quick and (faults := below(measured)):
        sys.exit("\n".join(faults))
