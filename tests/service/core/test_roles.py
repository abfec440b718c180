"""The owner migrates, the runner reads and writes rows: what each may do, and how a database comes to have both."""

import asyncio
import hashlib
import hmac
import itertools
import logging
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from typing import Any, Final

import asyncpg
import pytest
from msgspec.structs import replace

import sql
from service.core import roles
from service.core.errors import StartError
from service.core.migrate import migrate
from service.core.postgres_preflight import check_postgres
from service.core.servers import connect
from service.core.settings import Settings
from service.embedded import Server
from service.embedded.postgres import RUNNER
from tests.board import TICKET, board_on
from tests.second_postgres import database

NUMBERS: Final = itertools.count()


class Arranged:
    """A database of its own and the roles that a test makes beside it, as the server's administrator."""

    def __init__(self, server: Server, name: str, administrator: Any) -> None:
        self.name, self._server, self._administrator = name, server, administrator
        self.roles: list[str] = []

    async def role(self, word: str, rights: str = "login") -> str:
        name = f"{self.name}_{word}"
        await self.do(f"create role {name} {rights}")
        self.roles.append(name)
        return name

    def url(self, role: str, password: str = "") -> str:
        return database(self._server, self.name, f"{role}:{password}" if password else role)

    async def do(self, statement: str) -> Any:
        return await self._administrator.fetch(statement)

    async def inside(self, statement: str) -> Any:
        connection = await asyncpg.connect(database(self._server, self.name))
        try:
            return await (connection.fetch if statement.startswith("select") else connection.execute)(statement)
        finally:
            await connection.close()


@pytest.fixture
async def arranged(servers: tuple[Server, Server]) -> AsyncIterator[Arranged]:
    name = f"roles_{next(NUMBERS)}"
    administrator = await asyncpg.connect(servers[0].url)
    await administrator.execute(f"create database {name} template template0")
    made = Arranged(servers[0], name, administrator)
    await made.inside("create extension vector")
    yield made
    await administrator.execute(f"drop database {name} with (force)")
    for role in reversed(made.roles):
        await administrator.execute(f"drop role if exists {role}")
    await administrator.close()


async def by_one_role(arranged: Arranged, settings: Settings) -> tuple[str, Settings]:
    """A database as it was before there were two: one role made everything."""
    app = await arranged.role("app")
    await arranged.do(f"grant create on database {arranged.name} to {app}")
    await arranged.inside(f"grant all on schema public to {app}")
    own = replace(settings, database_url=arranged.url(app), database_owner_url="")
    await migrate(own)
    return app, own


async def test_what_is_handed_over_is_what_migrations_make(settings: Settings) -> None:
    connection = await asyncpg.connect(settings.database_owner_url)
    rows = await connection.fetch("select relname, relkind from pg_class where relnamespace = 'public'::regnamespace")
    functions = await connection.fetch(
        "select p.oid::regprocedure::text as name from pg_proc p where pronamespace = 'public'::regnamespace"
        " and not exists (select 1 from pg_depend d where d.objid = p.oid and d.deptype = 'e')"
    )
    identity = await connection.fetchval("select pg_get_serial_sequence('dead_letters', 'dead_no')")
    await connection.close()
    assert sorted(roles.TABLES) == sorted(row["relname"] for row in rows if row["relkind"] == b"r")
    sequences = {row["relname"] for row in rows if row["relkind"] == b"S"}
    assert {*roles.SEQUENCES} == sequences - {identity.removeprefix("public.")}
    assert {*roles.FUNCTIONS} == {row["name"] for row in functions}


@pytest.mark.parametrize(
    "statement",
    [
        "create table mine (n integer)",
        "alter table events add column mine integer",
        "drop table runs",
        "truncate work",
        "create index on events (tenant)",
        "insert into migrations (name, hash) values ('0099', '')",
        "delete from migrations",
        "create role mine",
        "alter extension vector update",
        "copy events to program 'cat'",
        "copy events to '/tmp/events'",
        "select pg_read_file('/etc/passwd')",
        "set role callboard",
        "alter system set fsync = off",
        "create function f() returns integer language sql as 'select 1'",
        "alter sequence mailbox_seq restart",
        "create schema mine",
    ],
)
async def test_the_role_of_the_programs_does_nothing_but_read_and_write_rows(
    settings: Settings, statement: str
) -> None:
    connection = await connect(settings, "test")
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    finally:
        await connection.close()


async def test_each_right_that_it_has_is_one_that_programs_need(settings: Settings) -> None:
    connection = await connect(settings, "test")
    rights = ["select", "insert", "update", "delete", "truncate", "references", "trigger", "maintain"]
    try:
        for table in roles.TABLES:
            has = {
                word for word in rights if await connection.fetchval("select has_table_privilege($1, $2)", table, word)
            }
            assert has == ({"select"} if table == "migrations" else {"select", "insert", "update", "delete"}), table
        assert await connection.fetchval("select current_user") == RUNNER
        row = await connection.fetchrow("select rolsuper, rolcreaterole, rolcreatedb, rolbypassrls from pg_roles"
                                        " where rolname = current_user")  # fmt: skip
        assert row is not None
        assert not any(row.values())
    finally:
        await connection.close()


async def test_a_database_of_one_role_is_handed_over_to_its_owner_and_a_runner(
    arranged: Arranged, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """The role that made it goes on as the owner; the other one is made, and the same data is there for it."""
    app, before = await by_one_role(arranged, settings)
    async with board_on(before) as board:
        event_id = await board.send("ticket.opened", TICKET)
        await board.ended(event_id)
    with caplog.at_level(logging.WARNING, "callboard.boot"):
        await check_postgres(before, "API")
    assert f"The role {app} of DATABASE_URL owns the tables" in caplog.text
    await arranged.do(f"alter role {app} createrole")
    arranged.roles.append(runner := f"{arranged.name}_runner")
    after = replace(before, database_url=arranged.url(runner), database_owner_url=before.database_url)
    assert await migrate(after) == []
    assert await migrate(after) == []  # what is granted is not granted again
    caplog.clear()
    with caplog.at_level(logging.WARNING, "callboard.boot"):
        await check_postgres(after, "worker")
    assert "DATABASE_URL" not in caplog.text
    async with board_on(after) as board:
        assert (await board.http.get(f"/events/{event_id}")).json()["status"] == "succeeded"
        assert (await board.ended(await board.send("ticket.opened", TICKET)))["status"] == "succeeded"


async def test_the_role_that_made_it_becomes_the_runner(arranged: Arranged, settings: Settings) -> None:
    """Its address stays where it is; an administrator makes the owner, who takes all tables."""
    app, before = await by_one_role(arranged, settings)
    owner = await arranged.role("owner")
    await arranged.do(f"grant create on database {arranged.name} to {owner}")
    after = replace(before, database_owner_url=arranged.url(owner))
    with pytest.raises(StartError, match=f"belongs to the role {app}"):
        await migrate(after)
    await arranged.do(f"grant {app} to {owner}")
    await arranged.inside(f"grant all on schema public to {owner}; revoke create on schema public from {app}")
    assert await migrate(after) == []
    tables = await arranged.inside(
        "select distinct pg_get_userbyid(relowner) as owner from pg_class"
        " where relnamespace = 'public'::regnamespace and relkind in ('r', 'S', 'i')"
    )
    assert [row["owner"] for row in tables] == [owner]
    async with board_on(after) as board:
        assert (await board.ended(await board.send("ticket.opened", TICKET)))["status"] == "succeeded"


async def test_the_schema_of_0_1_is_handed_over_before_it_is_migrated(
    arranged: Arranged, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sequence has another name by then (0023_field_words.sql), which only its owner may give it."""
    files = sql.migrations()
    with monkeypatch.context() as patched:
        patched.setattr(sql, "migrations", lambda: files[:12])
        app, before = await by_one_role(arranged, settings)
    owner = await arranged.role("owner")
    await arranged.do(f"grant {app} to {owner}")
    await arranged.do(f"grant create on database {arranged.name} to {owner}")
    await arranged.inside(f"grant all on schema public to {owner}")
    after = replace(before, database_owner_url=arranged.url(owner))
    assert await migrate(after) == [name for name, _ in files[12:]]
    (row,) = await arranged.inside(
        "select relowner::regrole::text as owner from pg_class where relname = 'mailbox_seq'"
    )
    assert row["owner"] == owner
    async with board_on(after) as board:
        assert (await board.ended(await board.send("ticket.opened", TICKET)))["status"] == "succeeded"


async def test_a_member_of_the_owner_is_one_until_it_has_its_rights(arranged: Arranged, settings: Settings) -> None:
    """So the release before goes on under the new name while a database is handed over."""
    owner = replace(settings, database_url=arranged.url("callboard"), database_owner_url="")
    await migrate(owner)
    runner = await arranged.role("runner", "login in role callboard")
    after = replace(owner, database_url=arranged.url(runner), database_owner_url=owner.database_url)
    await check_postgres(after, "API")
    assert await migrate(after) == []
    (row,) = await arranged.do(f"select pg_has_role('{runner}', 'callboard', 'member') as still")
    assert row["still"] is False
    async with board_on(after) as board:
        assert (await board.ended(await board.send("ticket.opened", TICKET)))["status"] == "succeeded"


async def test_a_runner_without_its_rights_is_told_how_it_gets_them(arranged: Arranged, settings: Settings) -> None:
    _, before = await by_one_role(arranged, settings)
    runner = await arranged.role("runner")
    with pytest.raises(StartError, match=r"may not write to Callboard's tables: run `callboard migrate`"):
        await check_postgres(replace(before, database_url=arranged.url(runner)), "API")


async def test_a_runner_alone_can_t_migrate_and_is_told_who_can(arranged: Arranged, settings: Settings) -> None:
    runner = await arranged.role("runner")
    await arranged.inside("revoke create on schema public from public")
    with pytest.raises(StartError, match="set DATABASE_OWNER_URL"):
        await migrate(replace(settings, database_url=arranged.url(runner), database_owner_url=""))


async def test_an_owner_who_may_make_no_role_says_what_an_administrator_does(
    arranged: Arranged, settings: Settings
) -> None:
    _, before = await by_one_role(arranged, settings)
    after = replace(before, database_url=arranged.url("nobody_yet"), database_owner_url=before.database_url)
    with pytest.raises(StartError, match=r"the role nobody_yet, which does not exist.*create it as an admin"):
        await migrate(after)


async def test_another_database_is_not_taken_for_the_same(arranged: Arranged, settings: Settings) -> None:
    app, before = await by_one_role(arranged, settings)
    await arranged.do(f"alter role {app} createrole")
    elsewhere = settings.database_url
    with pytest.raises(StartError, match="lead to different tables"):
        await migrate(replace(before, database_url=elsewhere, database_owner_url=before.database_url))
    await arranged.inside(f"drop owned by {RUNNER}")


async def test_a_password_is_kept_as_the_standard_has_it(arranged: Arranged) -> None:
    """The exchange of RFC 7677 §3: what is kept of `pencil` proves what that server proves; Postgres keeps it so."""
    kept = roles.verifier("pencil", b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="))
    head, salt, keys = kept.split("$")
    assert (head, salt) == ("SCRAM-SHA-256", "4096:W22ZaJ0SNY7soEsUEjb6gQ==")
    stored, server = (b64decode(part) for part in keys.split(":"))
    nonce = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    said = f"n=user,r=rOprNGfwEbeRWgbNEkqO,{nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,{nonce}".encode()
    assert b64encode(hmac.digest(server, said, "sha256")) == b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    proof = b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    signature = hmac.digest(stored, said, "sha256")
    assert hashlib.sha256(bytes(a ^ b for a, b in zip(proof, signature, strict=True))).digest() == stored
    role = await arranged.role("user", f"login password '{kept}'")
    (row,) = await arranged.do(f"select rolpassword from pg_authid where rolname = '{role}'")
    assert row["rolpassword"] == kept


def test_migrations_make_nothing_for_one_role_alone() -> None:
    assert not [name for name, text in sql.migrations() if "owner to" in text or "grant " in text]


async def test_two_migrate_at_once(arranged: Arranged, settings: Settings) -> None:
    app, before = await by_one_role(arranged, settings)
    await arranged.do(f"alter role {app} createrole")
    arranged.roles.append(runner := f"{arranged.name}_runner")
    after = replace(before, database_url=arranged.url(runner), database_owner_url=before.database_url)
    assert await asyncio.gather(*(migrate(after) for _ in range(3))) == [[], [], []]
