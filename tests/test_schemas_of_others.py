"""A database as others arrange it: pgvector in a schema of its own, a role that owns nothing but its own."""

from collections.abc import AsyncIterator

import asyncpg
import pytest
from msgspec.structs import replace

import sql
from service.core.errors import StartError
from service.core.migrate import migrate
from service.core.postgres_preflight import check_postgres
from service.core.settings import Settings
from service.embedded import Server
from tests.board import TICKET, board_on
from tests.second_postgres import database

NAME = "arranged"


@pytest.fixture
async def arranged(
    request: pytest.FixtureRequest, settings: Settings, servers: tuple[Server, Server]
) -> AsyncIterator[Settings]:
    """As Supabase has it; the parameter is what the role's search_path is set to."""
    outside = await asyncpg.connect(servers[0].url)
    await outside.execute(f"create database {NAME} template template0")
    await outside.execute("create role app login")
    await outside.execute(f"alter role app in database {NAME} set search_path = {request.param}")
    inside = await asyncpg.connect(database(servers[0], NAME))
    await inside.execute(
        "create schema extensions; create extension vector schema extensions; create schema app authorization app;"
        " grant usage on schema extensions to app; revoke all on schema public from public"
    )
    await inside.close()
    yield replace(settings, database_url=database(servers[0], NAME, "app"), database_owner_url="")
    await outside.execute(f"drop database {NAME} with (force)")
    await outside.execute("drop role app")
    await outside.close()


@pytest.mark.parametrize(
    "arranged",
    ['"$user", public, extensions', '"$user", public', "app"],
    ids=["supabase", "default", "alone"],
    indirect=True,
)
async def test_pgvector_in_a_schema_of_its_own(arranged: Settings) -> None:
    """Migrations ran, everything was ready, every event was accepted, and none ever ended."""
    assert await migrate(arranged) == [name for name, _ in sql.migrations()]
    await check_postgres(arranged, "worker")
    async with board_on(arranged) as board:
        event_id = await board.send("ticket.opened", TICKET)
        assert (await board.ended(event_id))["status"] == "succeeded"
        response = await board.http.post(
            "/collections/tickets/search", json={"query": "charged twice", "mode": "hybrid"}
        )
        assert response.status_code == 200, response.text
        assert len(response.json()["items"]) == 1
        (where,) = await board.sql(
            "select distinct schemaname from pg_tables where tablename in ('events', 'documents')"
        )
        assert where["schemaname"] == "app"


@pytest.mark.parametrize("arranged", ['"$user", public'], indirect=True)
async def test_a_role_that_may_not_use_pgvector(arranged: Settings, servers: tuple[Server, Server]) -> None:
    inside = await asyncpg.connect(database(servers[0], NAME))
    await inside.execute("revoke usage on schema extensions from app")
    await inside.close()
    with pytest.raises(StartError, match="This role may not use the schema of pgvector: grant usage on it to the role"):
        await migrate(arranged)


@pytest.mark.parametrize("arranged", ['"$user", public'], indirect=True)
async def test_a_role_that_may_not_install_pgvector(arranged: Settings, servers: tuple[Server, Server]) -> None:
    inside = await asyncpg.connect(database(servers[0], NAME))
    await inside.execute("drop extension vector")
    await inside.close()
    with pytest.raises(StartError, match="vector") as caught:
        await migrate(arranged)
    assert len(str(caught.value).splitlines()) <= 2
