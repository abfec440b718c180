"""What producers put on `callboard:ingest` is stored in its order, once, or is in the dead letters with its reason."""

import asyncio
import logging
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from msgspec import json
from msgspec.structs import replace
from redis.asyncio import Redis

import schemas.events
from schemas.catalog import discover
from service.core import streams
from service.core.redis_address import redis_address
from service.core.redis_owner import RedisOwner
from service.core.servers import open_redis
from service.core.settings import Settings
from service.core.supervise import end, keep
from service.embedded import Server
from service.embedded.redis import redis_cli
from service.intake.stream_reader import StreamReader
from tests.board import Board
from tests.eventually import eventually
from tests.servers import NAMES

LABELLED: dict[str, Any] = {"type": "message.labelled", "data": {"text": "a", "label": "b"}}
GOOD = json.encode(LABELLED)


def event(**attributes: Any) -> bytes:
    return json.encode({**LABELLED, **attributes})


@asynccontextmanager
async def taking_in(settings: Settings) -> AsyncIterator[None]:
    """What a worker does with the stream, supervised as there."""
    worker = uuid4()

    async def holder() -> UUID:
        return worker

    async with open_redis(settings, 8) as redis:
        inbound = StreamReader(settings, discover(schemas.events), redis, holder, RedisOwner(settings))
        task = asyncio.create_task(keep("inbound", inbound.run))
        try:
            yield
        finally:
            await end([task])


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    async with open_redis(settings) as client:
        yield client


@pytest.fixture
async def sql(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(settings.database_url)
    yield connection
    await connection.close()


async def add(redis: Redis, *bodies: bytes) -> list[str]:
    async with redis.pipeline(transaction=True) as pipe:
        for body in bodies:
            pipe.xadd(NAMES.ingest, {"event": body})
        return [entry_id.decode() for entry_id in await pipe.execute()]


async def quiet(redis: Redis) -> bool:
    """Nothing in the stream, nothing pending."""
    if await redis.xlen(NAMES.ingest):
        return False
    return bool((await redis.xpending(NAMES.ingest, streams.INGEST_GROUP))["pending"] == 0)


async def ids(sql: asyncpg.Connection) -> list[str]:
    """The ids of all events, in the order of their places."""
    return [
        row["id"]
        for row in await sql.fetch("select e.id from events e join work using (event_id) order by mailbox_seq")
    ]


async def test_from_a_plain_redis_cli(board: Board) -> None:
    redis = redis_address(board.settings.redis_url)
    command = [redis_cli(), "-s", redis.path, "-n", str(redis.db), "XADD", "callboard:ingest", "*", "event"]
    named = event(id="order-7", source="/shop", partitionkey="customer-7", someext="kept")
    for body in (named, GOOD):
        subprocess.run([*command, body], check=True, capture_output=True, timeout=10)

    async def both() -> list[Any]:
        items: list[Any] = (await board.http.get("/events")).json()["items"]
        return items if len(items) == 2 else []

    await eventually(both)
    (found,) = (await board.http.get("/events", params={"source": "/shop", "id": "order-7"})).json()["items"]
    shown = await board.ended(found["event_id"])
    assert shown["status"] == "succeeded"
    assert (shown["data"], shown["partitionkey"], shown["someext"]) == (LABELLED["data"], "customer-7", "kept")
    (unnamed,) = (await board.http.get("/events", params={"source": "/http"})).json()["items"]
    assert unnamed["id"].startswith(f"{await streams.epoch(board.redis, NAMES)}/")
    await eventually(lambda: quiet(board.redis))


BAD: list[tuple[bytes, str, str]] = [
    (b"", "invalid", "$: "),
    (b"hello", "invalid", "$: "),
    (b'{"type":"ticket.closed"}', "invalid", "$.type: "),
    (b'{"type":"message.labelled","data":{"text":"a","label":7}}', "invalid", "$.data.label: "),
    (b'{"type":"message.labelled","data":{"text":"\\u0000","label":"b"}}', "invalid", "$.data.text: "),
    (b'{"type":"message.labelled","data":{"text":NaN,"label":"b"}}', "invalid", "$.data.text: "),
    (b'{"dueat":"0001-01-01T00:00:00+14:00","type":"message.labelled"}', "invalid", "$.data.text: "),
    (b"[" * 1000, "invalid", "$: nested deeper than 64"),
    (b"\xff\xfe", "invalid", "$: not UTF-8"),
    (event(subject="x" * 100, id="i" * 201), "invalid", "$.id: "),
    (event(data={"text": "a" * 3000, "label": "b"}), "too_large", "$: larger than 2000 bytes"),
]


async def test_a_bad_entry_is_a_dead_letter_and_its_neighbours_are_events(
    settings: Settings, redis: Redis, sql: asyncpg.Connection
) -> None:
    bodies = [event(id="first"), *(body for body, _, _ in BAD), event(id="last")]
    entries = await add(redis, *bodies)
    no_event = (await redis.xadd(NAMES.ingest, {"evnt": GOOD})).decode()
    async with taking_in(replace(settings, body_max=2000)):
        await eventually(lambda: quiet(redis))
    assert await ids(sql) == ["first", "last"]
    letters = await sql.fetch("select * from dead_letters order by dead_no")
    epoch = await streams.epoch(redis, NAMES)
    assert [row["origin"] for row in letters] == [f"ingest/{epoch}/{each}" for each in [*entries[1:-1], no_event]]
    for row, (body, reason, words) in zip(letters, BAD, strict=False):
        error = json.decode(row["error"])
        assert row["reason"] == reason
        assert set(error) == {"kind", "message", "step", "at", "where"}
        assert error["message"].startswith(words)
        assert (row["event_id"], row["attempts"]) == (None, 0)
        if body:
            assert row["event"] == body[:2000].decode("utf-8", "replace")
    assert "no field `event`" in letters[-1]["error"]
    assert json.decode(letters[-1]["event"]) == {"evnt": GOOD.decode()}


async def test_the_same_id_with_other_content_is_a_dead_letter(
    settings: Settings, redis: Redis, sql: asyncpg.Connection
) -> None:
    other = event(id="one", data={"text": "other", "label": "b"})
    await add(redis, event(id="one"), event(id="one"), other, event(id="two"))
    async with taking_in(settings):
        await eventually(lambda: quiet(redis))
    assert await ids(sql) == ["one", "two"]
    (letter,) = await sql.fetch("select * from dead_letters")
    assert (letter["reason"], letter["event"]) == ("invalid", other.decode())
    assert json.decode(letter["error"])["message"].startswith("$.id: ")


async def test_events_keep_the_order_of_the_stream(settings: Settings, redis: Redis, sql: asyncpg.Connection) -> None:
    names = [f"n{number}" for number in range(700)]
    for at in range(0, 700, 100):  # one reader while producers go on, one that stands by
        await add(redis, *(event(id=name, partitionkey="one") for name in names[at : at + 100]))
        if at == 300:
            async with taking_in(settings), taking_in(settings):
                await eventually(lambda: quiet(redis))
    async with taking_in(settings):
        await eventually(lambda: quiet(redis), 30)
    assert await ids(sql) == names


async def test_read_twice_is_one_event(settings: Settings, redis: Redis, sql: asyncpg.Connection) -> None:
    """The reader dies behind the commit and before the acknowledgement: its successor reads its pending entries."""
    await add(redis, GOOD, b"bad", event(id="named"))
    async with sql.transaction():
        await sql.execute("lock table dead_letters")
        async with taking_in(settings):
            await eventually(lambda: _stored(settings, 2))
        assert (await redis.xpending(NAMES.ingest, streams.INGEST_GROUP))["pending"] == 3
    async with taking_in(settings):
        await eventually(lambda: quiet(redis))
    assert len(await ids(sql)) == 2
    assert await sql.fetchval("select count(*) from dead_letters") == 1


async def test_the_name_of_an_entry_is_its_id(settings: Settings, redis: Redis, sql: asyncpg.Connection) -> None:
    """A Redis that went back in time gives an entry again, under the name it had."""
    async with taking_in(settings):
        for _ in range(2):
            await redis.xadd(NAMES.ingest, {"event": GOOD}, id="5-1")
            await eventually(lambda: quiet(redis))
            await redis.delete(NAMES.ingest)
        await redis.xadd(NAMES.ingest, {"event": GOOD}, id="5-2")
        await eventually(lambda: quiet(redis))
    epoch = await streams.epoch(redis, NAMES)
    assert await ids(sql) == [f"{epoch}/5-1", f"{epoch}/5-2"]


async def test_an_entry_deleted_while_it_was_pending_is_no_dead_letter(
    settings: Settings, redis: Redis, sql: asyncpg.Connection
) -> None:
    entries = await add(redis, event(id="kept"), event(id="deleted"))
    await streams.ensure_group(redis, NAMES.ingest, streams.INGEST_GROUP)
    await streams.read(redis, [NAMES.ingest], streams.INGEST_GROUP, "intake", 10)
    await redis.xdel(NAMES.ingest, entries[1])
    async with taking_in(settings):
        await eventually(lambda: quiet(redis))
    assert await ids(sql) == ["kept"]
    assert await sql.fetchval("select count(*) from dead_letters") == 0


async def test_a_group_that_was_destroyed_is_made_again(
    settings: Settings, redis: Redis, sql: asyncpg.Connection
) -> None:
    async with taking_in(settings):
        await add(redis, event(id="0"))
        await eventually(lambda: quiet(redis))
        ruins: list[Callable[[], Awaitable[object]]] = [
            lambda: redis.xgroup_destroy(NAMES.ingest, streams.INGEST_GROUP),
            lambda: redis.delete(NAMES.ingest),
            redis.flushdb,
        ]
        for number, ruin in enumerate(ruins, 1):
            await ruin()
            await add(redis, event(id=str(number)))
            await eventually(lambda: quiet(redis))
    assert await ids(sql) == ["0", "1", "2", "3"]


async def test_nothing_is_lost_while_postgres_is_away(
    settings: Settings, redis: Redis, servers: tuple[Server, Server], caplog: pytest.LogCaptureFixture
) -> None:
    """The database refuses everybody for a while, in the middle of a stream of entries."""
    name = settings.database_url.partition("?")[0].rpartition("/")[2]
    outside = await asyncpg.connect(servers[0].url)
    names = [f"n{number}" for number in range(300)]
    async with taking_in(settings):
        await add(redis, *(event(id=each, partitionkey="one") for each in names[:100]))
        await outside.execute(f'alter database "{name}" allow_connections false')
        await outside.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name)
        await add(redis, *(event(id=each, partitionkey="one") for each in names[100:200]))
        with caplog.at_level(logging.WARNING):
            await eventually(lambda: _told(caplog, "inbound ended"))
        await outside.execute(f'alter database "{name}" allow_connections true')
        await add(redis, *(event(id=each, partitionkey="one") for each in names[200:]))
        await eventually(lambda: quiet(redis), 20)
    await outside.close()
    sql = await asyncpg.connect(settings.database_url)
    assert await ids(sql) == names
    await sql.close()


async def _stored(settings: Settings, count: int) -> bool:
    with suppress(asyncpg.PostgresError):
        sql = await asyncpg.connect(settings.database_url)
        try:
            return bool(await sql.fetchval("select count(*) from events") == count)
        finally:
            await sql.close()
    return False


async def _told(caplog: pytest.LogCaptureFixture, words: str) -> bool:
    return any(words in record.getMessage() for record in caplog.records)
