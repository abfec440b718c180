"""What is wrong with Postgres is a sentence before a program starts; against the real thing each."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import asyncpg
import pytest
from msgspec.structs import replace

import sql
from service.core.errors import StartError
from service.core.migrate import migrate
from service.core.postgres_preflight import ProgramName, check_all, check_postgres, connections_max
from service.core.servers import connect, open_pool
from service.core.settings import Settings
from service.embedded import Server
from tests.board import board_on
from tests.pgbouncer import PASSWORD, pgbouncer, pgbouncer_in
from tests.processes import ROOT
from tests.second_postgres import database, second_postgres
from tests.servers import open_folder

PROGRAMS: Final[tuple[ProgramName, ...]] = ("API", "worker", "migrations")
DEADLINES: Final = {
    "statement_timeout": "10s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "10s",
    "jit": "off",
    "plan_cache_mode": "force_custom_plan",
    "TimeZone": "UTC",
}


@pytest.fixture(scope="module")
def bouncer() -> Iterator[Path]:
    """PgBouncer's package, unpacked where an ordinary user may run it."""
    with open_folder() as folder:
        yield pgbouncer_in(folder)


async def admin(server: Server, *statements: str) -> None:
    connection = await asyncpg.connect(server.url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def refused(settings: Settings, program: ProgramName = "API") -> list[str]:
    """What is said."""
    with pytest.raises(StartError) as caught:
        await check_postgres(settings, program)
    return str(caught.value).splitlines()


def test_all_that_is_wrong_is_said() -> None:
    def wrong(sentence: str) -> None:
        raise StartError(sentence)

    check_all()
    with pytest.raises(StartError, match=r"^One\.\nTwo\.\nThree\.$"):
        check_all(lambda: wrong("One."), lambda: None, lambda: wrong("Two.\nThree."))


async def test_a_postgres_in_order_is_passed_and_one_that_is_away_may_come_back(settings: Settings) -> None:
    for program in PROGRAMS:
        await check_postgres(settings, program)
    await check_postgres(replace(settings, database_url="postgresql://127.0.0.1:9/none"), "API")


async def test_another_encoding_is_refused(settings: Settings, servers: tuple[Server, Server]) -> None:
    await admin(
        servers[0],
        "create database latin with template template0 encoding 'LATIN1' locale 'C' locale_provider 'libc'",
    )
    latin = replace(settings, database_url=database(servers[0], "latin"), database_owner_url="")
    sentence = (
        "The encoding of this database is LATIN1, and Callboard needs UTF8: make another with"
        " `createdb --encoding=UTF8 --template=template0 NAME`, and name that one in DATABASE_URL."
    )
    assert await refused(latin, "migrations") == [sentence]
    with pytest.raises(StartError, match="encoding of this database is LATIN1"):
        await migrate(latin)
    await admin(servers[0], "drop database latin with (force)")


@pytest.mark.parametrize("topic", ["postgres_preflight", "roles", "servers"])
def test_what_is_sent_before_the_encoding_is_known_fits_every_one(topic: str) -> None:
    """Comments are sent, too."""
    assert [name for name, text in sql.queries(topic).items() if not text.isascii()] == []


async def test_what_is_wrong_and_not_away(settings: Settings, servers: tuple[Server, Server]) -> None:
    for url, words in {
        database(servers[0], "no_such_database"): 'database "no_such_database" does not exist',
        database(servers[0], "migrated", "nobody_we_know"): 'role "nobody_we_know" does not exist',
    }.items():
        (sentence,) = await refused(replace(settings, database_url=url))
        assert sentence == f"Postgres refuses the connection: {words}. Look at DATABASE_URL."


async def test_a_role_that_may_not_open_enough_connections(settings: Settings, servers: tuple[Server, Server]) -> None:
    await admin(
        servers[0],
        "create role small login connection limit 12 in role callboard_runner",
        "alter role small set role callboard_runner",  # as a rotation makes them
    )
    name = settings.database_url.partition("?")[0].rpartition("/")[2]
    small = replace(settings, database_url=database(servers[0], name, "small"))
    (sentence,) = await refused(small)
    assert sentence == (
        "Postgres has room for 12 more connections (the role's limit is 12, 0 in use), and the API takes up to 15:"
        " raise that bound, or set CALLBOARD_POOL lower (it is 10)."
    )
    await check_postgres(replace(small, pool=7), "API")
    held = [await asyncpg.connect(small.database_url) for _ in range(12)]
    (sentence,) = await refused(small)
    assert sentence.startswith("Postgres has no connection left for the API: too many connections for role")
    for each in held:
        await each.close()
    await admin(servers[0], "alter role small connection limit 1")
    (sentence,) = await refused(small)
    assert sentence.startswith("Postgres has no connection left for the API: too many connections for role")
    await admin(servers[0], "drop role small")


async def test_a_server_with_few_connections(settings: Settings) -> None:
    """max_connections=20: it took events, broke under load, and charged attempts."""
    with open_folder() as folder:
        async with second_postgres(folder / "few", {"max_connections": "20", "max_wal_senders": "2"}) as server:
            few = replace(settings, database_url=server.url, database_owner_url="")
            await migrate(few)
            (sentence,) = await refused(few, "worker")
            assert sentence == (
                "Postgres has room for 20 more connections (max_connections = 20, 0 reserved, 0 in use), and the worker"
                " takes up to 21: raise that bound, or set CALLBOARD_POOL lower (it is 10)."
            )
            await check_postgres(few, "API")
            fits = replace(few, pool=2)
            async with board_on(fits) as board:
                await asyncio.gather(
                    *(board.send("ticket.opened", {"ticket_id": "T", "subject": "s", "body": "b"}) for _ in range(20))
                )
                rows = await board.sql(
                    "select split_part(application_name, ' ', 2) as kind, count(*)::integer as n from pg_stat_activity"
                    " where application_name like 'callboard %' group by 1"
                )
                used = {row["kind"]: row["n"] for row in rows}
                assert sum(used.values()) <= connections_max(fits, "API") + connections_max(fits, "worker")


async def test_every_connection_has_its_deadlines(settings: Settings) -> None:
    held = await connect(settings, "test")
    found = {name: await held.fetchval(f"show {name}") for name in DEADLINES}
    assert found == DEADLINES
    await held.close()
    async with open_pool(replace(settings, pool=1), "test") as pool:
        for _ in range(3):
            async with pool.acquire() as connection:
                assert {name: await connection.fetchval(f"show {name}") for name in DEADLINES} == DEADLINES


def test_no_connection_is_opened_past_the_one_place_that_gives_it_deadlines() -> None:
    """Embedded servers ask theirs once whether it has started."""
    opening = re.compile(r"asyncpg\.(connect|create_pool|Pool)\(")
    found = {
        str(file.relative_to(ROOT))
        for folder in ("service", "workers")
        for file in (ROOT / folder).rglob("*.py")
        if opening.search(file.read_text(encoding="utf-8"))
    }
    assert found == {"service/core/servers.py", "service/embedded/postgres.py"}


async def test_a_pool_takes_no_open_transaction_back(settings: Settings) -> None:
    async with open_pool(replace(settings, pool=1), "test") as pool:
        async with pool.acquire() as connection:
            pid = await connection.fetchval("select pg_backend_pid()")
            with pytest.raises(asyncpg.UndefinedTableError):
                async with connection.transaction():
                    await connection.execute("select from no_such_table")
        assert await pool.fetchval("select pg_backend_pid()") == pid
        assert await pool.fetchval("show statement_timeout") == "10s"


@pytest.fixture
async def pooled(bouncer: Path, settings: Settings, servers: tuple[Server, Server]) -> AsyncIterator[Settings]:
    name = settings.database_url.partition("?")[0].rpartition("/")[2]
    async with pgbouncer(bouncer, servers[0]) as running:
        yield replace(settings, database_url=f"{running.address}/{name}")


async def test_sessions_of_a_pgbouncer_as_it_comes(pooled: Settings) -> None:
    """It refused the parameters of ours at the start of a connection."""
    (sentence,) = await refused(pooled, "worker")
    assert sentence == (
        "DATABASE_URL leads to a pooler that gave 20 connections at once, and the worker takes up to 21: raise its"
        " bound (PgBouncer: default_pool_size), or set CALLBOARD_POOL lower (it is 10)."
    )
    fits = replace(pooled, pool=2)
    for program in PROGRAMS:
        await check_postgres(fits, program)
    await test_every_connection_has_its_deadlines(fits)
    async with board_on(fits) as board:
        sent = [
            await board.send("ticket.opened", {"ticket_id": f"T-{n}", "subject": "s", "body": "b"}) for n in range(5)
        ]
        assert {(await board.ended(each))["status"] for each in sent} == {"succeeded"}
        assert (await board.http.get("/readyz")).status_code == 200


async def test_a_pgbouncer_that_takes_nobody_more(
    bouncer: Path, settings: Settings, servers: tuple[Server, Server]
) -> None:
    async with pgbouncer(bouncer, servers[0], max_client_conn="1") as running:
        full = replace(settings, database_url=f"{running.address}/migrated")
        held = await asyncpg.connect(full.database_url)
        (sentence,) = await refused(full)
        assert sentence == (
            "Postgres has no connection left for the API: no more connections allowed (max_client_conn)."
        )
        await held.close()


async def test_a_pgbouncer_with_one_session(bouncer: Path, settings: Settings, servers: tuple[Server, Server]) -> None:
    async with pgbouncer(bouncer, servers[0], default_pool_size="1") as running:
        (sentence,) = await refused(replace(settings, database_url=f"{running.address}/migrated"))
        assert "a pooler that gave 1 connections at once, and the API takes up to 15: raise its bound" in sentence


async def test_a_wrong_password_and_no_tls(pooled: Settings) -> None:
    """Neither passes by itself; neither sentence holds the password."""
    wrong = pooled.database_url.replace(PASSWORD, "let-us-in")
    (sentence,) = await refused(replace(pooled, database_url=wrong))
    assert sentence.startswith("Postgres refuses the connection: ")
    assert "let-us-in" not in sentence
    (sentence,) = await refused(replace(pooled, database_url=f"{pooled.database_url}?sslmode=require"))
    assert sentence == "Postgres offers no TLS, and sslmode in DATABASE_URL asks for it."
    await check_postgres(replace(pooled, pool=2, database_url=f"{pooled.database_url}?sslmode=prefer"), "API")


async def test_transactions_of_a_pgbouncer_are_refused(
    bouncer: Path, settings: Settings, servers: tuple[Server, Server]
) -> None:
    """It said 202, then every GET was a 500."""
    name = settings.database_url.partition("?")[0].rpartition("/")[2]
    ignored = "statement_timeout, lock_timeout, idle_in_transaction_session_timeout, jit, plan_cache_mode"
    for more in ({}, {"ignore_startup_parameters": ignored}):
        async with pgbouncer(bouncer, servers[0], pool_mode="transaction", **more) as running:
            through = replace(settings, database_url=f"{running.address}/{name}", database_owner_url="")
            for program in PROGRAMS:
                (sentence,) = await refused(through, program)
                assert sentence.startswith(
                    "DATABASE_URL leads to a pooler that gives each transaction another connection."
                )
            with pytest.raises(StartError, match="name the server itself, or a pooler of sessions"):
                await migrate(through)
