"""Callboards that share a Redis: with prefixes they never meet, without they say whose it is and touch nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from schemas.identity import uuid7
from service.core.redis_owner import adopt
from service.core.settings import Settings
from service.core.streams import names_of
from tests.board import TICKET, Board, board_on
from tests.eventually import eventually
from tests.servers import NAMES

EVENT: Final = b'{"type":"ticket.opened","data":{"ticket_id":"T-1","subject":"a","body":"b"}}'


@pytest.fixture
async def other(settings: Settings) -> AsyncIterator[Settings]:
    """Another database, with an owner's id of its own, on the same Redis."""
    name = f"other_{uuid7().hex}"
    head, _, query = settings.database_url.partition("?")
    connection = await asyncpg.connect(settings.database_owner_url)
    try:
        await connection.execute(f'create database "{name}" template migrated')
        yield replace(settings, database_url=f"{head.rpartition('/')[0]}/{name}?{query}")
        await connection.execute(f'drop database "{name}" with (force)')
    finally:
        await connection.close()


@asynccontextmanager
async def renamed_owner(settings: Settings) -> AsyncIterator[None]:
    """The template's id is that of all databases made of it."""
    connection = await asyncpg.connect(settings.database_url)
    try:
        await connection.execute("update redis_owner set owner = gen_random_uuid()")
        yield
    finally:
        await connection.close()


async def busy(board: Board, prefix: str) -> None:
    """One event of each way: HTTP, the stream, a bad entry, an alarm, a call with a limit, a cancellation."""
    await board.ended(await board.send("ticket.opened", TICKET))
    await board.redis.xadd(f"{prefix}ingest", {"event": EVENT})
    await board.redis.xadd(f"{prefix}ingest", {"event": b"no event"})

    async def taken() -> bool:
        items = (await board.http.get("/events")).json()["items"]
        letters = (await board.http.get("/dead-letters")).json()["items"]
        return [item["status"] for item in items] == ["succeeded"] * 2 and len(letters) == 1

    assert await eventually(taken, 30)
    assert await eventually(lambda: board.redis.exists(f"{prefix}dead"))


async def test_two_prefixes_on_one_redis_never_meet(settings: Settings, other: Settings) -> None:
    one = replace(settings, redis_prefix="staging:", simulate="on")
    two = replace(other, redis_prefix="production/", simulate="on")
    async with Redis.from_url(settings.redis_url) as client, client.monitor() as monitor:
        seen: list[str] = []
        listener = asyncio.create_task(_listen(monitor, seen.append))
        async with renamed_owner(other), board_on(one) as first, board_on(two) as second:
            await asyncio.gather(busy(first, "staging:"), busy(second, "production/"))
            await first.workers[0].arq.enqueue_job("wake")
            keys = [key.decode() for key in await client.keys()]
        listener.cancel()
        assert {key.partition(":")[0].partition("/")[0] for key in keys} == {"staging", "production"}, keys
        # What was touched and is gone again: names in the commands of arq and of the doorbells.
        assert not [
            word for line in seen for word in line.split() if word.startswith(('"callboard:', '"arq:', "callboard:"))
        ]
        assert any("production/arq:" in line for line in seen)
        assert {"staging:owner", "production/owner"} <= set(keys)


async def _listen(monitor: Any, tell: Callable[[str], None]) -> None:
    async for command in monitor.listen():
        tell(command["command"])


async def test_a_foreign_owner_while_running(settings: Settings, other: Settings) -> None:
    """Neither read nor written there; when it is ours again everything goes on."""
    async with renamed_owner(other), board_on(replace(settings, simulate="on")) as board:
        await board.ended(await board.send("ticket.opened", TICKET))
        before, theirs = await adopt(other)
        assert before != theirs

        async def foreign() -> bool:
            (degraded,) = (await board.http.get("/readyz")).json()["degraded"]
            (worker,) = (await board.http.get("/workers")).json()["items"]
            return (degraded["reason"], worker["state"], worker["reason"]) == ("foreign", "disconnected", "foreign")

        assert await eventually(foreign, 20)
        accepted = await board.send("ticket.opened", TICKET)
        await board.redis.delete(*[key for key in await board.redis.keys() if key != NAMES.owner.encode()])
        entry = await board.redis.xadd(NAMES.ingest, {"event": EVENT})
        await asyncio.sleep(3)
        assert sorted(await board.redis.keys()) == [NAMES.ingest.encode(), NAMES.owner.encode()]
        assert [entry_id for entry_id, _ in await board.redis.xrange(NAMES.ingest)] == [entry]
        assert await board.redis.get(NAMES.owner) == theirs.encode()
        assert (await board.show(accepted))["status"] == "queued"

        assert await adopt(settings) == (theirs, before)
        assert (await board.ended(accepted, 30))["status"] == "succeeded"
        assert await eventually(lambda: _taken(board), 30)

        async def ready() -> bool:
            (worker,) = (await board.http.get("/workers")).json()["items"]
            return bool(worker["state"] == "ready" and (await board.http.get("/readyz")).json()["degraded"] == [])

        assert await eventually(ready, 20)


async def _taken(board: Board) -> bool:
    return not await board.redis.xlen(NAMES.ingest)


async def test_doorbells_that_are_no_streams_are_made_anew(settings: Settings) -> None:
    async with board_on(replace(settings, simulate="on")) as board:
        for name in (NAMES.work, NAMES.front, NAMES.epoch, f"{NAMES.arq}:queue"):
            await board.redis.delete(name)
            await (board.redis.sadd(name, "x") if name == NAMES.epoch else board.redis.set(name, "x"))  # type: ignore[misc]
            event = await board.ended(await board.send("ticket.opened", TICKET), 30)
            assert event["status"] == "succeeded"
        assert await eventually(lambda: _types(board, {NAMES.work: b"stream", NAMES.epoch: b"string"}))


async def _types(board: Board, wanted: dict[str, bytes]) -> bool:
    return {name: await board.redis.type(name) for name in wanted} == wanted


@pytest.mark.parametrize("part", ["ingest", "dead"])
async def test_streams_of_others_are_named_and_left_as_they_are(
    part: str, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    name = getattr(names_of(settings), part)
    async with board_on(replace(settings, simulate="on")) as board:
        await board.redis.delete(name)
        await board.redis.set(name, "somebody's")
        if part == "dead":
            await board.sql(
                "insert into dead_letters (dead_id, origin, reason, error, attempts, event) "
                "values ($1, 'x', 'invalid', '{\"message\": \"x\"}', 0, '{}')", uuid7()
            )  # fmt: skip
        event = await board.ended(await board.send("ticket.opened", TICKET), 30)
        assert event["status"] == "succeeded", "doorbells go on"

        async def degraded() -> bool:
            (found,) = (await board.http.get("/readyz")).json()["degraded"]
            return bool(found["reason"] == "refused")

        assert await eventually(degraded)
        assert await eventually(lambda: _said(caplog, f"{name} in Redis is no stream: rename or delete it"))
        assert await board.redis.get(name) == b"somebody's"
        await board.redis.delete(name)

        async def mended() -> bool:
            return bool((await board.http.get("/readyz")).json()["degraded"] == [])

        assert await eventually(mended)


async def _said(caplog: pytest.LogCaptureFixture, words: str) -> bool:
    return words in caplog.text
