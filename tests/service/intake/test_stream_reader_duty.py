"""Who takes the stream in: under the name of a lease that is held, and somebody else when that lease is gone."""

import asyncio
import time
from typing import Final
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from service.core.servers import Connection
from service.core.settings import Settings
from tests.board import Board, board_on
from tests.eventually import eventually
from tests.servers import NAMES
from tests.service.intake.test_stream_reader import GOOD, taking_in
from workers.engine.lease import Lease
from workers.engine.supervisor import Parts

INGEST: Final = NAMES.ingest

LATE_S: Final = 2.0
AT_ONCE_S: Final = 5.0  # a duty that is not tied to a lease is free after 15 s


async def test_the_duty_is_taken_under_a_name_that_is_registered(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forced: the worker's parts run before its heartbeat has registered it."""
    register = Lease._register

    async def late(lease: Lease, connection: Connection) -> None:
        await asyncio.sleep(LATE_S)
        await register(lease, connection)

    monkeypatch.setattr(Lease, "_register", late)
    monkeypatch.setattr("workers.engine.lease.BEAT_TIMEOUT_S", 30.0)
    async with board_on(settings) as board:
        await eventually(lambda: _held_by(board, board.workers[0]))
        strange = await board.sql("select duty from duties where holder not in (select worker from workers)")
        assert not strange, f"held under an id that nobody has: {strange}"


async def test_a_worker_that_lost_its_lease_goes_on_under_its_new_name(settings: Settings) -> None:
    async with board_on(settings) as board:
        (worker,) = board.workers
        await eventually(lambda: _held_by(board, worker))
        old = worker.lease.worker
        await board.sql("update workers set state = 'dead'")
        await eventually(lambda: asyncio.sleep(0, worker.lease.held and worker.lease.worker != old))
        begun = time.monotonic()
        await _taken_in(board)
        assert time.monotonic() - begun < AT_ONCE_S
        await eventually(lambda: _held_by(board, worker), AT_ONCE_S)


@pytest.mark.parametrize("gone", ["lease_until = clock_timestamp() - interval '1 ms'", "state = 'dead'"])
async def test_a_duty_is_free_when_the_lease_of_its_holder_is_gone(settings: Settings, gone: str) -> None:
    async with board_on(settings, workers=0) as board:
        holder = uuid4()
        await board.sql(
            "insert into workers (worker, host, pid, version, lease_until, state, slots, in_flight, pipelines)"
            " values ($1, 'other', 1, '', clock_timestamp() + interval '1 h', 'ready', 1, 0, '{}')",
            holder,
        )
        await board.sql(
            "update duties set holder = $1, held_until = clock_timestamp() + interval '1 h' where duty = 'ingest'",
            holder,
        )
        async with taking_in(settings):
            await _add(board.redis)
            await asyncio.sleep(1.5)  # as long as somebody holds it, nobody else takes in
            assert not await board.sql("select 1 from events")
            await board.sql(f"update workers set {gone}")
            await _taken_in(board, added=True)


async def _held_by(board: Board, worker: Parts) -> bool:
    rows = await board.sql("select holder from duties where duty = 'ingest' and held_until > clock_timestamp()")
    return [row["holder"] for row in rows] == [worker.lease.worker]


async def _add(redis: Redis) -> None:
    await redis.xadd(INGEST, {"event": GOOD})


async def _taken_in(board: Board, *, added: bool = False) -> None:
    if not added:
        await _add(board.redis)
    await eventually(lambda: board.sql("select 1 from events"), 2 * AT_ONCE_S)
