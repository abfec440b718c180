"""A run for tests of the kit: real clients that nobody has connected yet, and a lease that always holds."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
from msgspec import Raw
from msgspec.structs import replace

from prompts import Prompts
from schemas.identity import uuid7
from service.core.destinations import ON_THIS_MACHINE, allowed
from service.core.metrics import Meters
from service.core.settings import Settings
from service.documents.vectors import Vectors, searching
from workers.kit.handles import Clients, RunDeps
from workers.kit.memory import Facts, Guard, Kept
from workers.kit.run import Run
from workers.models.call import Caller
from workers.models.circuit_breaker import Policy
from workers.models.client import CallLog, Llm
from workers.web import open_web

NOWHERE = Settings(database_url="postgresql://127.0.0.1:9/nowhere")


def no_call_log(step: str, guard: Guard) -> CallLog:
    raise AssertionError("no node of these tests asks a model")


async def held() -> None:
    return


class Memory:
    """A journal: what was stored by step, and what was stored together."""

    def __init__(self) -> None:
        self.entries: dict[str, Raw] = {}
        self.together: list[list[str]] = []

    async def keep(self, event_id: UUID, run: int, claim: int, entries: Sequence[Kept]) -> None:
        self.together.append([entry.step for entry in entries])
        for each in entries:
            self.entries.setdefault(each.step, Raw(each.entry))


@asynccontextmanager
async def open_run(memory: Memory | None = None) -> AsyncIterator[Run]:
    """A run that finds what `memory` has, and stores there."""
    memory = memory or Memory()
    async with open_web(allowed(ON_THIS_MACHINE)) as web:
        pool: asyncpg.Pool = asyncpg.create_pool(NOWHERE.database_url, min_size=0)
        llm = Llm(Prompts({}, {}), Caller({}, {}, Policy(), simulated=False))
        deps = RunDeps(
            claim=1,
            clients=Clients(llm, Vectors(pool, searching(NOWHERE, Meters())), web),
            call_log=no_call_log,
            facts=Facts(journal=dict(memory.entries)),
            settings=NOWHERE,
            keep=memory.keep,
        )
        yield Run(uuid7(), "test", "/test", key=None, number=1, attempt=1, _deps=deps, _guard=held)


def with_deps(run: Run, **changed: Any) -> Run:
    """The same run, with other things of the engine."""
    return replace(run, _deps=replace(run._deps, **changed))
