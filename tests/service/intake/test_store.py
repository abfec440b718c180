"""Store: identity, order of places, and answers that stay true when a commit is made twice."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from msgspec import json

import schemas.events
from schemas import Event
from schemas.catalog import Catalog, EventType, discover
from schemas.envelope import Incoming, read
from service.core.settings import Settings
from service.core.supervise import end
from service.intake.store import Store, Stored

CATALOG = discover(schemas.events)


class Renamed(Event, tag="message.labelled", frozen=True):
    """`message.labelled` after its fields were renamed: what is stored does not decode any more."""

    body: str


def incoming(catalog: Catalog = CATALOG, **attributes: Any) -> Incoming:
    event = {"type": "message.labelled", "data": {"text": "a", "label": "b"}, **attributes}
    return read(json.encode(event), catalog, source="/test")


@asynccontextmanager
async def open_store(settings: Settings, catalog: Catalog = CATALOG) -> AsyncIterator[Store]:
    store = Store(settings, catalog)
    writing = asyncio.create_task(store.run())
    try:
        yield store
    finally:
        await end([writing])


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    async with open_store(settings) as opened:
        yield opened


@pytest.fixture
async def sql(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(settings.database_url)
    yield connection
    await connection.close()


async def test_one_identity_in_one_batch(store: Store) -> None:
    said = [incoming(id="1"), incoming(id="1"), incoming(id="1", subject="other"), incoming(id="2")]
    first, again, other, second = await asyncio.gather(*(store.accept(each) for each in said))
    assert first == Stored(said[0].event_id, "queued")
    assert again == Stored(said[0].event_id, "queued", duplicate=True, due=False)
    assert other == Stored(said[0].event_id, "queued", duplicate=True, conflict=True, due=False)
    assert second == Stored(said[3].event_id, "queued")


async def test_an_event_committed_twice_is_no_duplicate_of_itself(store: Store, sql: asyncpg.Connection) -> None:
    """The answer of the first commit was lost: the second finds the event, and a worker has still to be notified."""
    once = incoming(id="1", partitionkey="k")
    assert await store.accept(once) == await store.accept(once) == Stored(once.event_id, "queued")
    assert await sql.fetchval("select count(*) from work") == 1


async def test_due_later_or_long_ago(store: Store) -> None:
    later, past = incoming(dueat="2100-01-01T00:00:00Z"), incoming(dueat="1900-01-01T00:00:00Z")
    assert await store.accept(later) == Stored(later.event_id, "scheduled", due=False)
    assert await store.accept(past) == Stored(past.event_id, "queued", due=True)


async def test_what_no_longer_decodes_is_another_event(settings: Settings, store: Store) -> None:
    first = incoming(id="1")
    await store.accept(first)
    renamed = {"message.labelled": EventType("message.labelled", Renamed, json.Decoder(Renamed))}
    async with open_store(settings, renamed) as newer:
        stored = await newer.accept(incoming(renamed, id="1", data={"body": "a"}))
        assert (stored.event_id, stored.conflict) == (first.event_id, True)


async def test_places_follow_the_order_of_acceptance(settings: Settings, sql: asyncpg.Connection) -> None:
    """Two processes take turns: whoever was accepted before the other came has the earlier place."""
    sent: list[str] = []
    async with open_store(settings) as one, open_store(settings) as two:
        for number in range(60):
            sent.append(str(number))
            await (one, two)[number % 2].accept(incoming(id=str(number), partitionkey="k"))
    assert await _places(sql) == sent


async def test_places_in_a_batch_follow_the_order_of_arrival(store: Store, sql: asyncpg.Connection) -> None:
    events = [incoming(id=str(number), partitionkey=f"k{number % 3}") for number in range(400)]
    await asyncio.gather(*(store.accept(event) for event in events))
    for key in range(3):
        assert await _places(sql, f"k{key}") == [str(number) for number in range(400) if number % 3 == key]


async def test_two_stores_with_the_same_events_in_opposite_order(settings: Settings, sql: asyncpg.Connection) -> None:
    """Each waits for rows of the other's: one of them has to step back, and nobody notices."""
    there = [incoming(id=str(number)) for number in range(200)]
    back = [incoming(id=str(number)) for number in reversed(range(200))]
    async with open_store(settings) as one, open_store(settings) as two:
        stored = await asyncio.gather(*map(one.accept, there), *map(two.accept, back))
    assert [each.duplicate for each in stored].count(False) == 200
    assert not any(each.conflict for each in stored)
    assert await sql.fetchval("select count(*) from events") == await sql.fetchval("select count(*) from work") == 200


async def _places(sql: asyncpg.Connection, key: str = "k") -> list[str]:
    rows = await sql.fetch(
        "select id from events join work using (event_id) where partition_key = $1 order by mailbox_seq", key
    )
    return [row["id"] for row in rows]
