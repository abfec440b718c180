"""Migrations run once each, in order, one process at a time, and are never changed afterwards."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from msgspec.structs import replace

import sql
from service.core.errors import StartError
from service.core.migrate import migrate, outstanding, pending
from service.core.roles import as_owner
from service.core.servers import connect
from service.core.settings import Settings
from service.embedded import Server

NAMES = [name for name, _ in sql.migrations()]
FRESH = "fresh"


@pytest.fixture
async def fresh(settings: Settings, servers: tuple[Server, Server]) -> AsyncIterator[Settings]:
    """A database in which nothing has run yet."""
    outside = await asyncpg.connect(servers[0].url)
    await outside.execute(f"create database {FRESH} template template0")
    head, _, query = servers[0].url.partition("?")
    yield replace(settings, database_url=f"{head.rpartition('/')[0]}/{FRESH}?{query}", database_owner_url="")
    await outside.execute(f"drop database {FRESH} with (force)")
    await outside.close()


def test_they_are_numbered_without_gaps() -> None:
    assert [int(name[:4]) for name in NAMES] == list(range(1, len(NAMES) + 1))


async def test_each_runs_once(fresh: Settings) -> None:
    connection = await connect(fresh, "test")
    assert await pending(connection) == await outstanding(fresh) == NAMES
    assert await migrate(fresh) == NAMES
    assert await pending(connection) == []
    assert await migrate(fresh) == []
    await connection.close()


async def test_processes_that_start_together_do_it_once(fresh: Settings) -> None:
    done = await asyncio.gather(*(migrate(fresh) for _ in range(4)))
    assert sorted(name for names in done for name in names) == NAMES


async def test_a_long_one_and_who_waits_for_it(fresh: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may last on another connection is no bound for either: the index of a large table takes minutes."""
    monkeypatch.setattr("service.core.servers.STATEMENT_TIMEOUT_S", 0.3)
    monkeypatch.setattr(sql, "migrations", lambda: [("0001_long.sql", "select pg_sleep(1)")])
    done = await asyncio.gather(*(migrate(fresh) for _ in range(2)))
    assert sorted(done) == [[], ["0001_long.sql"]]


async def test_an_index_whose_making_was_cut_off_is_made_anew(settings: Settings) -> None:
    connection = await connect(as_owner(settings), "test")
    (name,) = (name for name, text in sql.migrations() if "events_of_key" in text)
    await connection.execute("update pg_index set indisvalid = false where indexrelid = 'events_of_key'::regclass")
    await connection.execute("delete from migrations where name = $1", name)
    assert await migrate(settings) == [name]
    assert not await connection.fetch("select from pg_index where not indisvalid")
    await connection.close()


async def test_without_postgres_there_is_a_sentence(settings: Settings) -> None:
    away = replace(settings, database_url="postgresql://127.0.0.1:9/none", database_owner_url="")
    for act in (migrate, outstanding):
        with pytest.raises(StartError, match="Postgres can't be brought up to date: "):
            await act(away)


async def test_one_that_was_changed_stops_the_boot(settings: Settings) -> None:
    connection = await connect(as_owner(settings), "test")
    await connection.execute("update migrations set hash = 'another' where name = $1", NAMES[0])
    with pytest.raises(StartError, match=rf"sql/migrations/{NAMES[0]} was changed .* write a new one"):
        await migrate(settings)
    await connection.execute("delete from migrations where name = $1", NAMES[-1])
    assert await pending(connection) == NAMES[-1:]
    await connection.close()


async def test_keys_made_before_documents_had_a_scope_keep_what_they_could(settings: Settings) -> None:
    """Beside the release before, whose constraint on scopes had no `documents`."""
    connection = await connect(as_owner(settings), "test")
    before = "check (scopes <@ array['ingest', 'read', 'operate', 'admin'] and scopes <> '{}')"
    await connection.execute(
        f"alter table keys drop constraint keys_scopes_check, add constraint keys_scopes_check {before}"
    )
    made = {"cb_1": ["ingest", "read"], "cb_2": ["read"], "cb_3": ["operate"], "cb_4": ["admin"]}
    for prefix, scopes in made.items():
        insert = "insert into keys (prefix, tenant, name, hash, scopes) values ($1, 'default', '', '', $2)"
        await connection.execute(insert, prefix, scopes)
    (name,) = (name for name in NAMES if "documents_scope" in name)
    await connection.execute("delete from migrations where name = $1", name)
    assert await migrate(settings) == [name]
    rows = await connection.fetch("select prefix, scopes from keys")
    more = {"cb_1": ["ingest", "read", "documents"], "cb_3": ["operate", "documents"]}
    assert {row["prefix"]: row["scopes"] for row in rows} == made | more
    await connection.close()
