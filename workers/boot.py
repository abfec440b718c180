"""The worker's program: checked whole, then run until SIGTERM or Ctrl-C."""

import asyncio
import logging
import os
import sys
from collections.abc import Callable

from prompts import PromptError
from schemas.catalog import CatalogError
from schemas.origin import line_of
from service.core import failpoints
from service.core.errors import CallboardError, WiringError
from service.core.log import setup
from service.core.postgres_preflight import check_all
from service.core.preflight import preflight
from service.core.program import MISFIT, freeze_gc, ignore, on_end
from service.core.settings import load
from service.core.supervise import end_in_time
from service.embedded import running
from workers.bootstrap import check_models, program, secrets
from workers.engine.supervisor import Program, open_worker

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
