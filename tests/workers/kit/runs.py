"""A run for tests of the kit: real clients that nobody has connected yet, and a lease that always holds."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg

from prompts import Prompts
from schemas.identity import uuid7
from service.settings import Settings
from workers.clients.breaker import Policy
from workers.clients.calling import Caller
from workers.clients.llm import Book, Llm
from workers.clients.vectors import Vectors
from workers.clients.web import open_web
from workers.kit.handles import Clients
from workers.kit.memory import Facts, Guard, Kept
from workers.kit.run import Run

NOWHERE = Settings(database_url="postgresql://127.0.0.1:9/nowhere")


def no_book(step: str, guard: Guard) -> Book:
    raise AssertionError("no node of these tests asks a model")


async def held() -> None:
    return


async def keep_nothing(event_id: UUID, run: int, claim: int, entries: Sequence[Kept]) -> None:
    return


@asynccontextmanager
async def open_run() -> AsyncIterator[Run]:
    async with open_web() as web:
        pool: asyncpg.Pool = asyncpg.create_pool(NOWHERE.database_url, min_size=0)
        llm = Llm(Prompts({}, {}), Caller({}, {}, Policy(), simulated=False))
        yield Run(
            event_id=uuid7(),
            tenant="test",
            source="/test",
            key=None,
            number=1,
            attempt=1,
            claim=1,
            clients=Clients(llm, Vectors(pool), web),
            book=no_book,
            facts=Facts([], []),
            settings=NOWHERE,
            keep=keep_nothing,
            guard=held,
        )
