"""`make bench`: ratios, side by side in one run, on servers of its own. Times depend on the machine; ratios less so."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from msgspec import Struct, json
from redis.asyncio import Redis

from schemas.envelope import Attributes, Incoming
from schemas.identity import uuid7
from service import stream
from service.migrate import migrate
from service.resources import Connection, connect
from service.settings import Settings
from service.store import accept
from tests.bench import posting
from tests.eventually import eventually
from tests.processes import ROOT, alone, free_port, started
from tests.servers import NAMES, open_folder, postgres, redis

EVENTS: Final = 1000
CALLS: Final = 3
SLOTS: Final = 200
WARM: Final = 100
ROUNDS: Final = 2
LATENCY_MS: Final = 200
TIMEOUT_S: Final = 120.0
DRAINED: Final = 20_000
PIECE: Final = 1000
POSTED: Final = 5000  # ten times as many where many come together
BATCH: Final = 100
TEXT: Final = json.encode({"text": "My card was charged twice this month."})


class Took(Struct, frozen=True):
    """Of all the calls of a round: seconds of a processor, and seconds."""

    cpu_s: float
    s: float


class Bench(Struct, frozen=True):
    """A worker under way, and hands to give it something to do."""

    connection: Connection
    redis: Redis

    async def put(self, kind: str, count: int, data: bytes = b"{}") -> list[UUID]:
        """Stored and rung."""
        ids = [uuid7() for _ in range(count)]
        for begin in range(0, count, PIECE):
            piece = ids[begin : begin + PIECE]
            said = [Incoming(each, "/bench", str(each), kind, None, None, Attributes(), data) for each in piece]
            await accept(self.connection, said)
            await stream.ring(self.redis, piece, NAMES.work)
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
        took_s = await self.run("bench.thrice", EVENTS, TEXT)
        return Took(await self.cpu_s() - before_s, took_s)

    async def _result(self, event_id: UUID) -> Any:
        return await self.connection.fetchval("select result from events where event_id = $1", event_id)


async def main() -> None:
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
            await _measure(Bench(connection, client), settings, folder, url)


async def _measure(bench: Bench, settings: Settings, folder: Path, url: str) -> None:
    environ = {"OPENAI_API_KEY": "bench", "OPENAI_BASE_URL": f"{url}/v1"}
    rounds: dict[str, list[Took]] = {"the SDK alone": [], "the SDK alone, on aiohttp": [], "through the worker": []}
    with _worker(settings, folder, environ):
        await eventually(lambda: bench.connection.fetchval("select 1 from workers"), TIMEOUT_S)
        await bench.run("bench.thrice", WARM, TEXT)
        for _ in range(ROUNDS):
            for name, transport in zip(rounds, ("default", "aiohttp"), strict=False):
                rounds[name].append(await asyncio.to_thread(_bare, transport, environ))
            rounds["through the worker"].append(await bench.round())
    await bench.put("bench.nothing", DRAINED)
    with _worker(settings, folder, environ):
        drained_s = await bench.drained("bench.nothing", DRAINED)
    print(
        f"Python {sys.version.split()[0]}, {os.cpu_count()} cores for all of it; the better of {ROUNDS} rounds of",
        f"{EVENTS} events of {CALLS} calls of {LATENCY_MS} ms, {SLOTS * CALLS} calls at a time\n",
    )
    print("| calls of a model | CPU per call | calls/s | of the SDK on aiohttp |\n| --- | --- | --- | --- |")
    best_s = min(each.s for each in rounds["the SDK alone, on aiohttp"])
    for name, took in rounds.items():
        cpu_s, s = min(each.cpu_s for each in took), min(each.s for each in took)
        print(f"| {name} | {cpu_s / EVENTS / CALLS * 1000:.2f} ms | {EVENTS * CALLS / s:.0f} | {best_s / s:.2f} |")
    print("\n| events | events/s |\n| --- | --- |")
    accepted = await _accepting(settings, folder)
    for name, rate in {
        **accepted,
        "run by a worker that found them waiting: one node that does nothing": DRAINED / drained_s,
    }.items():
        print(f"| {name} | {rate:,.0f} |")


async def _accepting(settings: Settings, folder: Path) -> dict[str, float]:
    """Events a second, the better of ROUNDS."""
    ours, bare = free_port(), free_port()
    addresses = {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url}
    api = ((sys.executable, "-m", "service"), {**addresses, "CALLBOARD_PORT": str(ours)})
    route = ((sys.executable, "-m", "tests.bench.route", str(bare)), addresses)
    rates: dict[str, float] = {}
    with started(api[0], folder / "api.log", api[1]), started(route[0], folder / "route.log", route[1]):
        for _ in range(ROUNDS + 1):  # the first one warms up
            for name, port, together in (
                ("accepted by a bare route of Starlette: decoded, one row inserted", bare, 1),
                ("accepted by `POST /events`", ours, 1),
                (f"accepted by `POST /events/batch`, {BATCH} at a time", ours, BATCH),
            ):
                rates[name] = max(
                    await posting.rate(port, POSTED * (1 if together == 1 else 10), together), rates.get(name, 0.0)
                )
    return rates


def _bare(transport: str, environ: Mapping[str, str]) -> Took:
    command = (sys.executable, "-m", "tests.bench.bare", transport, str(EVENTS), str(SLOTS))
    told = subprocess.run(command, cwd=ROOT, env=alone(environ), stdout=subprocess.PIPE, check=True, timeout=TIMEOUT_S)
    return json.decode(told.stdout, type=Took)


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
    asyncio.run(main())
