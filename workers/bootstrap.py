"""The worker's program: put together from the user's folders, checked whole, and run until SIGTERM or Ctrl-C.

arq can host it instead: `arq workers.WorkerSettings`.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import prompts
import schemas.events
import workers.nodes
import workers.pipelines
import workers.providers
from prompts import PromptError
from schemas.catalog import CatalogError, discover
from schemas.origin import line_of
from service.core import failpoints
from service.core.errors import CallboardError, WiringError
from service.core.log import setup
from service.core.postgres_preflight import check_all
from service.core.preflight import preflight
from service.core.program import MISFIT, freeze_gc, ignore, on_end
from service.core.redis_owner import RedisOwner
from service.core.settings import Settings, load, secrets_of, spellings
from service.core.supervise import end_in_time
from service.embedded import running
from workers.compiler.prompt_calls import check_calls
from workers.compiler.wiring import everyone, wire
from workers.engine.scheduler import arq_settings, jobs, open_arq
from workers.engine.supervisor import Parts, Program, open_worker
from workers.kit.settings import read, texts
from workers.models.chains import check_keys

log = logging.getLogger("callboard.worker")


def main() -> int:
    """Exit status 0 after an orderly stop; with a sentence where the boot can't go on 1, for a user's file MISFIT."""
    pass_over_breakpoints()
    return _start(lambda worker_program: asyncio.run(run(worker_program)), servers=True)


def check() -> int:
    """Exit status 0 where a worker could start, as far as that shows without Postgres and Redis; else as `main`."""
    return _start(lambda _: print("callboard worker: could start"), servers=False)


def _start(go: Callable[[Program], None], *, servers: bool) -> int:
    setup()
    try:
        settings = running(load(os.environ))
        setup(secrets=settings.secrets)
        failpoints.check(settings)
        worker_program = program(settings)
        setup(secrets=secrets(worker_program))
        checks: list[Callable[[], object]] = [lambda: check_models(worker_program)]
        if servers:
            checks.append(lambda: preflight(settings, "worker"))
        check_all(*checks)
        go(worker_program)
    except (CallboardError, CatalogError, PromptError) as error:
        print(f"callboard worker: {error}", file=sys.stderr)
        return MISFIT if isinstance(error, WiringError | CatalogError | PromptError) else 1
    return 0


def pass_over_breakpoints() -> None:
    """Without a terminal a debugger could only end: what meets a forgotten breakpoint() goes on instead."""
    if "PYTHONBREAKPOINT" not in os.environ and not (sys.stdin and sys.stdin.isatty()):
        sys.breakpointhook = _passed_over


def _passed_over(*_: object, **__: object) -> None:
    caller = sys._getframe(1)
    log.warning(
        "breakpoint() at %s is passed over: this worker has no terminal. Run `callboard up --workers 0`, and "
        "`callboard worker` in a terminal of its own",
        line_of(caller.f_code.co_filename, caller.f_lineno),
    )


async def run(program: Program) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    on_end(lambda: loop.call_soon_threadsafe(stop.set))
    async with open_worker(program) as parts:
        freeze_gc()
        refused = parts.ledger.prompt_versions.changed if parts.ledger.prompt_versions else loop.create_future()
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([stopped, refused], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        end_in_time(program.settings.grace_s)
    ignore()
    if refused.done():
        raise PromptError(refused.result())


def program(settings: Settings) -> Program:
    """Settings and user code, wired and checked: nothing is connected to yet.

    Raises CatalogError, WiringError or PromptError with one sentence.
    """
    catalog = discover(schemas.events)
    wiring = wire(workers.pipelines, catalog)
    library = prompts.load()
    for wired in everyone(wiring):
        check_calls(wired.plan, library)
    own_settings = read((workers.nodes, workers.pipelines), os.environ)
    return Program(settings, catalog, wiring, library, workers.providers.discover(workers.providers), own_settings)


def secrets(program: Program) -> tuple[str, ...]:
    """What no log may show."""
    return spellings({*program.settings.secrets, *secrets_of(texts(program.own_settings))})


def check_models(program: Program) -> None:
    """Raises CallboardError where a prompt's models can't answer. The simulator does only where it is switched on."""
    if not program.settings.simulated:
        values = program.settings.providers
        with_key = [name for name, provider in program.providers.items() if provider.has_keys(values)]
        check_keys(program.prompts, with_key)


def worker_settings() -> type:
    """arq hosts the worker: its hooks open and drain it. A lost Redis ends that process, arq's way."""
    try:
        settings = running(load(os.environ))
        preflight(settings, "worker")
        worker_program = program(settings)
        check_models(worker_program)
    except (CallboardError, CatalogError, PromptError) as error:
        sys.exit(f"callboard worker: {error}")
    stack = AsyncExitStack()

    async def on_startup(_: dict[Any, Any]) -> None:
        setup(secrets=secrets(worker_program))
        try:
            started.append(await stack.enter_async_context(open_worker(worker_program, with_arq=False, owner=owner)))
        except (CallboardError, PromptError) as error:
            sys.exit(f"callboard worker: {error}")
        freeze_gc()
        if started[0].ledger.prompt_versions is not None:
            started[0].ledger.prompt_versions.changed.add_done_callback(lambda why: _end(why.result()))

    async def on_shutdown(_: dict[Any, Any]) -> None:
        await stack.aclose()

    async def turn() -> int:
        return await started[0].sweeper.turn()

    async def retain() -> int:
        return await started[0].retain()

    started: list[Parts] = []
    hooks = {"on_startup": on_startup, "on_shutdown": on_shutdown}
    owner = RedisOwner(settings)
    redis = {"redis_pool": open_arq(settings, owner.guard), "redis_settings": arq_settings(settings)}
    return type("WorkerSettings", (), {**jobs(settings, turn, retain), **hooks, **redis, "job_completion_wait": 1})


def _end(why: str) -> None:
    print(f"callboard worker: {why}", file=sys.stderr)
    signal.raise_signal(signal.SIGTERM)
