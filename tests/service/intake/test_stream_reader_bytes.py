"""Producers decide how large the entries are that are taken in: what a worker holds of them at a time is bounded."""

from typing import Any, Final

import asyncpg
import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from service.core import streams
from service.core.settings import Settings
from service.intake import stream_reader
from tests.eventually import eventually
from tests.servers import NAMES
from tests.service.intake.test_stream_reader import add, event, ids, quiet, redis, sql, taking_in

INGEST: Final = NAMES.ingest

__all__ = ["redis", "sql"]  # fixtures
LARGE: Final = 300_000
ENTRY_MAX: Final = 400_000
READ: Final[dict[str, Any]] = {"bytes_max": 2_000_000, "entry_max": ENTRY_MAX}


def large(name: str, size: int = LARGE) -> bytes:
    return event(id=name, type="document.added", data={"document_id": name, "text": "a" * size})


async def test_what_is_read_at_a_time_is_bounded_by_its_bytes(redis: Redis) -> None:
    """Small entries first: what was measured of them says nothing of the large ones behind."""
    small = [event(id=f"small {n}") for n in range(100)]
    entries = await add(redis, *small, *(large(f"large {n}") for n in range(30)))
    await streams.ensure_group(redis, INGEST, streams.INGEST_GROUP)
    seen: list[str] = []
    while found := await _read(redis, 500):
        size = sum(len(value) for _, fields in found for value in fields.values())
        assert size <= READ["bytes_max"] + streams.PIECE * LARGE * 1.01
        assert len(found) == 1 or len(found) > 4, "no more round trips than the bytes ask for"
        seen += [entry_id for entry_id, _ in found]
    assert seen == entries
    assert [entry_id for entry_id, _ in await _read(redis, 1, "0")] == entries[:1], (
        "pending ones come again, one by one"
    )


async def test_of_an_entry_that_is_too_large_no_more_is_read_than_shows_it(redis: Redis) -> None:
    await add(redis, large("a", 20 * ENTRY_MAX))
    await redis.xadd(INGEST, {f"field {n}": "x" * ENTRY_MAX for n in range(5)})
    await redis.xadd(INGEST, {"event": "first", "more": "x" * ENTRY_MAX})
    await streams.ensure_group(redis, INGEST, streams.INGEST_GROUP)
    (_, one), (_, fields), (_, beside) = await _read(redis, 10)
    assert {name: len(value) for name, value in one.items()} == {b"event": ENTRY_MAX + 1}
    assert sum(len(name) + len(value) for name, value in fields.items()) <= ENTRY_MAX + 1
    assert beside == {b"event": b"first"}


async def test_entries_that_are_too_large_are_dead_letters_and_their_neighbours_events(
    settings: Settings, redis: Redis, sql: asyncpg.Connection
) -> None:
    """Also one that comes while nothing else is there, and is read by another way."""
    async with taking_in(replace(settings, body_max=ENTRY_MAX)):
        await eventually(lambda: _waits(redis))
        await add(redis, large("first", 3 * ENTRY_MAX))
        await eventually(lambda: quiet(redis))
        await add(redis, *(large(f"{n}", LARGE if n % 5 else 5 * ENTRY_MAX) for n in range(30)))
        await eventually(lambda: quiet(redis), 30)
    assert await ids(sql) == [f"{n}" for n in range(30) if n % 5]
    letters = await sql.fetch("select reason, length(event) as length from dead_letters")
    assert [(row["reason"], row["length"]) for row in letters] == [("too_large", ENTRY_MAX)] * 7


async def test_what_was_read_and_not_finished_is_taken_one_by_one(
    settings: Settings, redis: Redis, sql: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among it may be what ended whoever had read it in one piece."""
    entries = await add(redis, *(event(id=f"{n}") for n in range(20)))
    await streams.ensure_group(redis, INGEST, streams.INGEST_GROUP)
    await streams.read(redis, [INGEST], streams.INGEST_GROUP, stream_reader.CONSUMER, 20)
    later = await add(redis, *(event(id=f"later {n}") for n in range(20)))
    taken: list[list[str]] = []
    take = stream_reader.StreamReader._take

    async def noted(self: stream_reader.StreamReader, connection: Any, found: Any) -> None:
        taken.append([entry_id for entry_id, _ in found])
        await take(self, connection, found)

    monkeypatch.setattr(stream_reader.StreamReader, "_take", noted)
    async with taking_in(settings):
        await eventually(lambda: quiet(redis))
    assert taken[:20] == [[entry] for entry in entries]
    assert [each for piece in taken[20:] for each in piece] == later
    assert len(await ids(sql)) == 40


async def _read(redis: Redis, count: int, after: str = ">") -> list[streams.Entry]:
    return await streams.read_bounded(
        redis, INGEST, streams.INGEST_GROUP, stream_reader.CONSUMER, count, after=after, **READ
    )


async def _waits(redis: Redis) -> bool:
    """Whether somebody waits for the next entry."""
    return any(client["cmd"] == "xreadgroup" and "b" in client["flags"] for client in await redis.client_list())
