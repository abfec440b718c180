"""The worker's program: its parts side by side, each started again when it ends; and an orderly end."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final

from arq import ArqRedis
from msgspec import Struct

from prompts import Prompts
from schemas.catalog import Catalog
from service.core.destinations import allowed
from service.core.metrics import Meters
from service.core.postgres_errors import SENTENCES
from service.core.postgres_preflight import connections_max
from service.core.readiness import NOT_READY_S, CommitHealth
from service.core.redis_owner import RedisOwner
from service.core.servers import POSTGRES_ERRORS, Connection, connect, open_pool, open_redis
from service.core.settings import Settings
from service.core.streams import names_of
from service.core.supervise import Part, supervised
from service.documents.vectors import Vectors, searching
from service.intake.notifier import Notifier
from service.intake.stream_reader import StreamReader
from workers.compiler.wiring import Wired, Wiring, everyone, graph
from workers.engine.budget.ledger import Ledger
from workers.engine.cancel import listen
from workers.engine.consumer import Consumer
from workers.engine.executor import Deps, Executor
from workers.engine.journal import Journal
from workers.engine.lease import SQL, Lease, State
from workers.engine.loop_watch import LoopWatch
from workers.engine.report import report
from workers.engine.resume import Resumer
from workers.engine.retention import retain, retain_often
from workers.engine.run_feed import FeedPublisher
from workers.engine.scheduler import Scheduler, Turn, open_arq, run_arq
from workers.engine.settle import Settler
from workers.engine.sweeper import Sweeper
from workers.kit.failures import start_task
from workers.kit.handles import Clients
from workers.kit.resources import open_resources
from workers.kit.settings import Own, addresses, simulated
from workers.models.client import Llm, open_llm
from workers.models.provider import Provider
from workers.models.rate_limit_shares import Shared
from workers.models.rate_limits import SCRIPT
from workers.web import open_web

BLOCKING_TIMEOUT_S: Final = 8.0

log = logging.getLogger("callboard.worker")


class Program(Struct, frozen=True):
    """What a worker is made from: settings and the user's code, wired."""

    settings: Settings
    catalog: Catalog
    wiring: Wiring
    prompts: Prompts
    providers: Mapping[str, Provider]
    own_settings: Own = {}


class Parts(Struct, frozen=True):
    """The parts of one worker, made in `open_worker`."""

    executor: Executor
    consumer: Consumer
    settler: Settler
    ledger: Ledger
    journal: Journal
    lease: Lease
    sweeper: Sweeper
    stream_reader: StreamReader
    notifier: Notifier
    publisher: FeedPublisher
    arq: ArqRedis
    cancels: Part
    report: Part
    meters: Meters
    retain: Turn
    watch: LoopWatch
    stopping: asyncio.Event


@asynccontextmanager
async def open_worker(
    program: Program, *, with_arq: bool = True, owner: RedisOwner | None = None
) -> AsyncIterator[Parts]:
    """A running worker; leaving the context drains it. `with_arq=False`: arq hosts us, not we arq, and `owner` guards
    its connections too.

    Raises PromptError where a prompt was changed under the number of a version that has been used.
    """
    async with AsyncExitStack() as stack:
        loop = asyncio.get_running_loop()
        stack.callback(loop.set_task_factory, loop.get_task_factory())
        loop.set_task_factory(start_task)  # no task that user code starts ends this worker
        parts = await _parts(program, stack, owner or RedisOwner(program.settings))
        if parts.ledger.prompt_versions is not None:
            await parts.ledger.prompt_versions.check(program.prompts)
        background = {
            "settle": parts.settler.run,
            "ledger": parts.ledger.run,
            "journal": parts.journal.run,
            "lease": lambda: parts.lease.run(parts.executor.drop_all),
            "notifier": parts.notifier.run,
            "live": parts.publisher.run,
            "graphs": lambda: _write_graphs(program),
            "loop": parts.meters.watch_loop,
            "loop watch": parts.watch.run,
            "report": parts.report,
            "retention": lambda: retain_often(parts.retain),
        }
        intake = {
            "consumer": parts.consumer.run,
            "stream reader": parts.stream_reader.run,
            "sweeper": parts.sweeper.run,
            "cancels": parts.cancels,
        }
        if with_arq:
            intake["arq"] = lambda: run_arq(program.settings, parts.arq, parts.sweeper.turn, parts.retain)
        explains, grace_s = parts.watch.explains, program.settings.grace_s
        async with supervised(background, explains), _drained(parts, grace_s), supervised(intake, explains):
            connections = connections_max(program.settings, "worker")
            what = "worker ready: %d pipelines, %d slots, up to %d connections to Postgres"
            log.info(what, len(program.wiring), program.settings.concurrency, connections)
            yield parts
            log.info("worker stops: %d events in hand", parts.executor.in_flight)
            parts.stopping.set()


async def _parts(program: Program, stack: AsyncExitStack, owner: RedisOwner) -> Parts:
    settings, names = program.settings, names_of(program.settings)
    simulator = await _simulator(stack) if settings.simulated else None
    own_settings = simulated(program.own_settings, simulator) if simulator else program.own_settings
    redis = await stack.enter_async_context(open_redis(settings, guard=owner.guard))
    blocking = await stack.enter_async_context(open_redis(settings, BLOCKING_TIMEOUT_S, owner.guard))
    pool = await stack.enter_async_context(open_pool(settings, "worker"))
    shared = Shared(redis.register_script(SCRIPT.read_text()), names, lambda: lease.alive)
    meters = Meters()
    llm = open_llm(settings, program.prompts, simulator, providers=program.providers, shared=shared, meters=meters)
    clients = await _open_clients(settings, own_settings, stack, llm, Vectors(pool, searching(settings, meters)))
    arq = open_arq(settings, owner.guard)
    stack.push_async_callback(arq.connection_pool.disconnect)
    notifier, ledger, journal = Notifier(redis, names), Ledger(settings, pool, meters), Journal(settings, meters)
    publisher = FeedPublisher(redis, names)
    settler = Settler(settings, notifier.notify, Scheduler(arq).wake_in, meters)
    stopping = asyncio.Event()
    calls, ends = ledger.commits
    commits = {"settle": settler.commits, "journal": journal.commits, "calls": calls, "ledger": ends}
    pipelines = [wired.name for wired in everyone(program.wiring)]
    watch = LoopWatch(lambda: executor.lift_limits())  # noqa: PLW0108 - it is made below
    lease = Lease(
        settings, pipelines, lambda: executor.in_flight, lambda: _state(stopping, consumer, commits), watch.debugged
    )
    deps = Deps(settings, program.catalog, program.wiring, clients, pool, ledger, journal, settler, publisher, meters)
    executor = Executor(deps, lease.guard)
    consumer = Consumer(settings, blocking, lease, executor, meters)
    keyed = frozenset(kind for kind, wired in program.wiring.items() if wired.needs_partition_key)
    resumer = Resumer(clients.llm.states, settings.concurrency)
    return Parts(
        executor=executor,
        consumer=consumer,
        settler=settler,
        ledger=ledger,
        journal=journal,
        lease=lease,
        sweeper=Sweeper(settings, redis, lease, executor, resumer, owner, meters),
        stream_reader=StreamReader(settings, program.catalog, blocking, lease.guard, owner, keyed, meters),
        report=lambda: report(settings, meters, lease, clients.llm.breakers),
        meters=meters,
        notifier=notifier,
        publisher=publisher,
        arq=arq,
        cancels=lambda: listen(blocking, names.cancel, executor),
        retain=lambda: retain(settings, redis, lease),
        watch=watch,
        stopping=stopping,
    )


async def _simulator(stack: AsyncExitStack) -> str:
    """Its address. A worker that asks real providers does not even import it."""
    from workers.simulator import running_simulator

    return await stack.enter_async_context(running_simulator())


async def _open_clients(
    settings: Settings, own: Own, stack: AsyncExitStack, llm: AbstractAsyncContextManager[Llm], vectors: Vectors
) -> Clients:
    return Clients(
        llm=await stack.enter_async_context(llm),
        vectors=vectors,
        web=await stack.enter_async_context(open_web(allowed(settings.web_allow, *addresses(own)))),
        resources=await stack.enter_async_context(open_resources()),
        own_settings=own,
    )


def _state(stopping: asyncio.Event, consumer: Consumer, commits: Mapping[str, CommitHealth]) -> State:
    """What the worker's row says of it, and why where that is not `ready`."""
    if stopping.is_set():
        return "draining", None
    for name, health in commits.items():
        if reason := health.failing:
            return "disconnected", f"For {NOT_READY_S:g} s every commit of its {name} failed: {SENTENCES[reason]}"
    return ("disconnected", consumer.reason) if consumer.disconnected else ("ready", None)


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
        pipelines = everyone(program.wiring)
        async with connection.transaction():
            await connection.execute(SQL["forget_pipelines"], list(program.wiring), [wired.name for wired in pipelines])
            for wired in program.wiring.values():
                await connection.execute(
                    SQL["write_pipeline"], *_drawing(wired, wired.type), None, None, wired.needs_partition_key
                )
            for wired in pipelines:
                for follow_up in wired.follow_ups:
                    await connection.execute(
                        SQL["write_pipeline"], *_drawing(follow_up, None), wired.name, follow_up.type, False
                    )
    finally:
        with suppress(*POSTGRES_ERRORS):
            await connection.close(timeout=1)
