"""The worker's program: its parts side by side, each started again when it ends; and an orderly end."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final

from arq import ArqRedis
from msgspec import Struct
from msgspec.structs import replace

from prompts import Prompts
from schemas.catalog import Catalog
from service.inbound import Inbound
from service.meters import Meters
from service.outbox import Outbox
from service.resources import POSTGRES_ERRORS, Connection, connect, open_pool, open_redis
from service.settings import Settings
from service.supervise import Part, supervised
from workers.clients.limits import SCRIPT
from workers.clients.llm import open_llm
from workers.clients.provider import Connect
from workers.clients.share import Shared
from workers.clients.vectors import Vectors
from workers.clients.web import open_web
from workers.engine.cancel import listen
from workers.engine.clock import Clock, Turn, open_arq, run_arq
from workers.engine.executor import Executor, Stage
from workers.engine.journal import Journal
from workers.engine.lease import SQL, Lease
from workers.engine.ledger import Ledger
from workers.engine.live import Wire
from workers.engine.loop_watch import LoopWatch
from workers.engine.reader import Reader
from workers.engine.recovery import Recovery
from workers.engine.report import report
from workers.engine.retention import retain
from workers.engine.settle import Settler
from workers.engine.sweeper import Sweeper
from workers.kit.handles import Clients
from workers.kit.memory import Limits
from workers.kit.resources import open_resources
from workers.kit.wiring import Wired, Wiring, everyone, graph
from workers.simulator import running_simulator

BLOCKING_TIMEOUT_S: Final = 8.0

log = logging.getLogger("callboard.worker")


class Program(Struct, frozen=True):
    """What a worker is made from: settings and the user's code, wired."""

    settings: Settings
    catalog: Catalog
    wiring: Wiring
    prompts: Prompts
    providers: Mapping[str, Connect]


class Parts(Struct, frozen=True):
    """The parts of one worker, made in `open_worker`."""

    executor: Executor
    reader: Reader
    settler: Settler
    ledger: Ledger
    journal: Journal
    lease: Lease
    sweeper: Sweeper
    inbound: Inbound
    outbox: Outbox
    wire: Wire
    arq: ArqRedis
    cancels: Part
    report: Part
    meters: Meters
    retain: Turn
    watch: LoopWatch
    stopping: asyncio.Event


@asynccontextmanager
async def open_worker(program: Program, *, with_arq: bool = True) -> AsyncIterator[Parts]:
    """A running worker; leaving the context drains it. `with_arq=False`: arq hosts us, not we arq.

    Raises PromptError where a prompt was changed under the number of a version that has been used.
    """
    async with AsyncExitStack() as stack:
        parts = await _parts(program, stack)
        if parts.ledger.versions is not None:
            await parts.ledger.versions.check(program.prompts)
        background = {
            "settle": parts.settler.run,
            "ledger": parts.ledger.run,
            "journal": parts.journal.run,
            "lease": lambda: parts.lease.run(parts.executor.drop_all),
            "outbox": parts.outbox.run,
            "live": parts.wire.run,
            "graphs": lambda: _write_graphs(program),
            "loop": parts.meters.watch_loop,
            "loop watch": parts.watch.run,
            "report": parts.report,
        }
        intake = {
            "reader": parts.reader.run,
            "inbound": parts.inbound.run,
            "upkeep": parts.sweeper.run,
            "cancels": parts.cancels,
        }
        if with_arq:
            intake["arq"] = lambda: run_arq(parts.arq, parts.sweeper.turn, parts.retain)
        explains, grace_s = parts.watch.explains, program.settings.grace_s
        async with supervised(background, explains), _drained(parts, grace_s), supervised(intake, explains):
            log.info("worker ready: %d pipelines, %d slots", len(program.wiring), program.settings.concurrency)
            yield parts
            log.info("worker stops: %d events in hand", parts.executor.in_flight)
            parts.stopping.set()


async def _parts(program: Program, stack: AsyncExitStack) -> Parts:
    settings = program.settings
    simulator = await stack.enter_async_context(running_simulator()) if settings.simulated else None
    if simulator and not settings.page_url:
        settings = replace(settings, page_url=f"{simulator}/pages")
    redis = await stack.enter_async_context(open_redis(settings))
    blocking = await stack.enter_async_context(open_redis(settings, BLOCKING_TIMEOUT_S))
    pool = await stack.enter_async_context(open_pool(settings, "worker"))
    shared = Shared(redis.register_script(SCRIPT.read_text()), lambda: lease.alive)
    clients = Clients(
        llm=await stack.enter_async_context(
            open_llm(settings, program.prompts, simulator_url=simulator, providers=program.providers, shared=shared)
        ),
        vectors=Vectors(pool),
        web=await stack.enter_async_context(open_web()),
        resources=await stack.enter_async_context(open_resources()),
    )
    arq, meters = open_arq(settings), Meters()
    stack.push_async_callback(arq.connection_pool.disconnect)
    outbox, ledger, journal = Outbox(redis), Ledger(settings, pool, meters), Journal(settings, meters)
    wire = Wire(redis)
    settler = Settler(settings, outbox.ring, Clock(arq).wake_at, meters)
    stopping, limits = asyncio.Event(), Limits()
    watch = LoopWatch(limits.lift)
    pipelines = [wired.name for wired in everyone(program.wiring)]
    lease = Lease(settings, pipelines, lambda: executor.in_flight, lambda: _state(stopping, reader), watch.debugged)
    stage = Stage(settings, program.catalog, program.wiring, clients, pool, ledger, journal, settler, wire, limits)
    executor = Executor(stage, lease.guard)
    reader = Reader(settings, blocking, lease, executor, meters)
    keyed = _keyed(program.wiring)
    return Parts(
        executor=executor,
        reader=reader,
        settler=settler,
        ledger=ledger,
        journal=journal,
        lease=lease,
        sweeper=Sweeper(settings, redis, lease, executor, Recovery(clients.llm.doors, settings.concurrency), meters),
        inbound=Inbound(settings, program.catalog, blocking, lambda: lease.worker, keyed, meters),
        report=lambda: report(settings, meters, lease, clients.llm.breakers),
        meters=meters,
        outbox=outbox,
        wire=wire,
        arq=arq,
        cancels=lambda: listen(blocking, executor),
        retain=lambda: retain(settings, redis, lease),
        watch=watch,
        stopping=stopping,
    )


def _state(stopping: asyncio.Event, reader: Reader) -> str:
    """What the worker's row says of it."""
    if stopping.is_set():
        return "draining"
    return "deaf" if reader.deaf else "ready"


def _keyed(wiring: Wiring) -> frozenset[str]:
    return frozenset(kind for kind, wired in wiring.items() if wired.needs_key)


def _drawing(wired: Wired, kind: str | None) -> tuple[Any, ...]:
    bounds = (wired.pipeline.retry.attempts, wired.pipeline.timeout_s)
    version, nodes, edges = graph(wired)
    return (wired.name, kind, version, *bounds, nodes, edges)


@asynccontextmanager
async def _drained(parts: Parts, grace_s: float) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await parts.executor.drain(grace_s)
        await parts.ledger.drain()


async def _write_graphs(program: Program) -> None:
    """The drawings of the pipelines, for whoever reads `GET /pipelines/{name}`."""
    connection: Connection = await connect(program.settings, "graphs")
    try:
        whole = everyone(program.wiring)
        async with connection.transaction():
            await connection.execute(SQL["forget_pipelines"], list(program.wiring), [wired.name for wired in whole])
            for wired in program.wiring.values():
                await connection.execute(
                    SQL["write_pipeline"], *_drawing(wired, wired.type), None, None, wired.needs_key
                )
            for wired in whole:
                for each in wired.followers:
                    await connection.execute(SQL["write_pipeline"], *_drawing(each, None), wired.name, each.type, False)
    finally:
        with suppress(*POSTGRES_ERRORS):
            await connection.close(timeout=1)
