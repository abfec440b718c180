"""Rows 25 and 27: Postgres is there, but stands still, is slow, is locked, or takes no more connections."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import asyncpg
import httpx
import pytest

from tests.eventually import eventually
from tests.faults.child import PATIENCE_S, Child
from tests.faults.oracle import judge
from tests.faults.rig import Rig
from tests.faults.stage import goes_on, refused, under_load
from tests.keys import AT_HOME

REFUSED = (202, 503)
POOL_MAX = 10
ANSWER_MAX_S = 25.0  # 5 s for a connection of the pool, 10 s for the statement, as much again to give it up


@pytest.mark.slow_fault
async def test_row_25_postgres_backends_frozen(rig: Rig) -> None:
    """One of our backends at a time, whichever it is, longer than anybody waits for it."""
    programs = [await rig.api(), await rig.worker(), await rig.worker()]
    async with under_load(rig, programs, told=REFUSED):
        for _ in range(3):
            row = rig.random.choice(await _backends(rig, "callboard %"))
            async with _frozen([row["pid"]]):
                rig.injected()
                await asyncio.sleep(12)
            await goes_on(rig, 20)
    await judge(rig)


@pytest.mark.slow_fault
async def test_row_25_postgres_frozen_pool_comes_back(rig: Rig) -> None:
    """All that the API reads with stands still: an answer comes in time, and afterwards the pool is whole again."""
    api = await rig.api()
    async with httpx.AsyncClient(headers=AT_HOME, base_url=api.url, timeout=ANSWER_MAX_S) as http:
        assert await _answers(http) == {200}
        async with _frozen([row["pid"] for row in await _backends(rig, "callboard api")]):
            rig.injected()
            assert await _answers(http) <= {200, 503}
        await eventually(lambda: _all_well(http), PATIENCE_S)
        assert len(await _backends(rig, "callboard api")) <= POOL_MAX
    assert api.running


@pytest.mark.slow_fault
@pytest.mark.parametrize("table", ["work", "events", "workers"])
async def test_row_25_postgres_table_locked(rig: Rig, table: str) -> None:
    programs = [await rig.api(), await rig.worker(), await rig.worker()]
    async with under_load(rig, programs, told=REFUSED):
        connection = await asyncpg.connect(rig.database_url, timeout=10)
        try:
            async with connection.transaction():
                await connection.execute(f"lock table {table} in access exclusive mode")
                rig.injected()
                await asyncio.sleep(12)
        finally:
            await connection.close(timeout=5)
        await goes_on(rig, 60)
    await judge(rig)


@pytest.mark.slow_fault
async def test_row_25_postgres_slow(rig: Rig) -> None:
    """Half a second more for each answer."""
    api, worker = await rig.api(doors=True), await rig.worker(doors=True)
    async with under_load(rig, [api, worker], told=REFUSED):
        for each in (api, worker):
            each.postgres.turn("delay", lambda: 0.25)
        rig.injected()
        await goes_on(rig, 120, 60)
        for each in (api, worker):
            each.postgres.turn("pass")
    await judge(rig)


@pytest.mark.slow_fault
async def test_row_27_postgres_connections_used_up(rig: Rig) -> None:
    """Nobody gets a connection any more: the API says so, and is not ready."""
    api = await rig.api()
    programs = [api, await rig.worker()]
    async with under_load(rig, programs, told=REFUSED):
        async with _used_up(rig):
            rig.injected()
            await refused(rig)
            assert await _ready(api) == 503
        await goes_on(rig, 60)
        assert await _ready(api) == 200
    await judge(rig)


@asynccontextmanager
async def _used_up(rig: Rig) -> AsyncIterator[None]:
    """All connections are ours: we take what is free, end what the programs have, and take that too."""
    async with AsyncExitStack() as stack:
        first = await _connection(rig, stack)
        taking = True
        while taking:
            taking = await _take_one(rig, stack)
        over_at = time.monotonic() + 20
        while time.monotonic() < over_at and await first.fetch(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'callboard %'"
        ):
            while await _take_one(rig, stack):
                pass
        yield


async def _take_one(rig: Rig, stack: AsyncExitStack) -> bool:
    with suppress(asyncpg.TooManyConnectionsError):
        return bool(await _connection(rig, stack))
    return False


async def _connection(rig: Rig, stack: AsyncExitStack) -> "asyncpg.Connection[asyncpg.Record]":
    connection = await asyncpg.connect(rig.database_url, timeout=10)
    stack.callback(connection.terminate)
    return connection


async def _backends(rig: Rig, application: str) -> list[asyncpg.Record]:
    return await rig.sql("select pid from pg_stat_activity where application_name like $1 order by pid", application)


@asynccontextmanager
async def _frozen(pids: list[int]) -> AsyncIterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def _answers(http: httpx.AsyncClient) -> set[int]:
    answers = await asyncio.gather(*(http.get("/events") for _ in range(2 * POOL_MAX)))
    return {answer.status_code for answer in answers}


async def _all_well(http: httpx.AsyncClient) -> bool:
    return await _answers(http) == {200}


async def _ready(api: Child) -> int:
    async with httpx.AsyncClient(headers=AT_HOME, base_url=api.url, timeout=ANSWER_MAX_S) as http:
        return (await http.get("/readyz")).status_code
