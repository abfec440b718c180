"""Migrations: each file of sql/migrations once, in number order, one transaction each, one process at a time.

One that begins with OUTSIDE is run statement by statement, in no transaction: it must be safe to repeat. One that
begins with STOP changes what the release before reads or writes: that is stopped first, and can't be rolled back to.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from typing import Final

import asyncpg

import sql
from service.core import roles
from service.core.errors import StartError, text_of
from service.core.postgres_address import NAME, OWNER_NAME
from service.core.postgres_preflight import check_postgres
from service.core.servers import POSTGRES_ERRORS, Connection, Pool, connect
from service.core.settings import Settings

OUTSIDE: Final = "-- outside a transaction\n"
STOP: Final = "-- stop: "  # and the reason
STOPPED_S: Final = 10.0  # the lease of a worker that was killed has run out by then
AGAIN_S: Final = 0.5
LASTS_MAX_S: Final = 4 * 3600.0  # one migration, or the wait for another process that runs them
_SQL: Final = sql.queries("migrate")


async def migrate(settings: Settings) -> list[str]:
    """Bring the schema up to date; returns the names of the migrations run now.

    As the owner, where DATABASE_OWNER_URL names one: then the role of DATABASE_URL gets the rights that it needs, also
    in a database in which one role did everything before.

    Raises StartError where a migration that has run was changed since, another process is at it for too long, or
    Postgres is away or refuses one.
    """
    await _check_owner(settings)
    async with _connected(settings) as connection:
        await connection.execute("set statement_timeout = 0")
        await _wait_for_turn(connection)
        if settings.database_owner_url:
            await roles.take_tables(connection)
        await _make_table(connection)
        names = [name for name, text in sql.migrations() if await _run_once(connection, name, text)]
        if settings.database_owner_url:
            await roles.grant_rights(connection, settings)
        return names


async def _make_table(connection: Connection) -> None:
    """Raises StartError for a role that may not, as one that only reads and writes rows."""
    try:
        if await pending(connection):
            await connection.execute(_SQL["table"])
    except asyncpg.InsufficientPrivilegeError as error:
        raise StartError(
            f"The role of DATABASE_URL may not change the schema ({text_of(error)}):"
            " set DATABASE_OWNER_URL to the address of the role that owns it."
        ) from error


async def _wait_for_turn(connection: Connection) -> None:
    try:
        async with asyncio.timeout(LASTS_MAX_S):
            while not await connection.fetchval(_SQL["alone"]):
                await asyncio.sleep(AGAIN_S)
    except TimeoutError as error:
        raise StartError(f"another process has been running migrations for {LASTS_MAX_S / 3600:g} hours") from error


async def outstanding(settings: Settings) -> list[str]:
    """Raises StartError where Postgres is away."""
    async with _connected(settings) as connection:
        return await pending(connection)


@asynccontextmanager
async def _connected(settings: Settings) -> AsyncIterator[Connection]:
    """As the owner. Raises StartError, which names the address that was used."""
    owner = roles.as_owner(settings)
    try:
        connection = await connect(owner, "migrate")
        try:
            yield connection
        finally:
            await connection.close()
    except POSTGRES_ERRORS as error:
        name = OWNER_NAME if settings.database_owner_url else NAME
        raise StartError(
            f"Postgres can't be brought up to date: {text_of(error)}. Look at it, and at {name}."
        ) from error


async def _check_owner(settings: Settings) -> None:
    try:
        await check_postgres(roles.as_owner(settings), "migrations")
    except StartError as error:
        if not settings.database_owner_url:
            raise
        raise StartError(str(error).replace(NAME, OWNER_NAME)) from error


async def pending(connection: Connection | Pool) -> list[str]:
    """The migrations this release has and the database has not."""
    there = await connection.fetchval(_SQL["exists"])
    done = {row["name"] for row in await connection.fetch(_SQL["done"])} if there else set()
    return [name for name, _ in sql.migrations() if name not in done]


def must_stop(name: str) -> bool:
    """Whether the release before this one has to be stopped before this migration runs."""
    return dict(sql.migrations())[name].startswith(STOP)


async def _check_stopped(connection: Connection, name: str) -> None:
    """Raises StartError where a worker's lease still holds after STOPPED_S."""
    with suppress(TimeoutError):
        async with asyncio.timeout(STOPPED_S):
            while await connection.fetch(_SQL["alive"]):
                await asyncio.sleep(AGAIN_S)
    if workers := await connection.fetch(_SQL["alive"]):
        named = ", ".join(f"process {row['pid']} on {row['host']}" for row in workers)
        raise StartError(
            f"sql/migrations/{name} changes what the release before it reads and writes, and workers run: {named}. Stop"
            " all workers and APIs, then migrate again (deploy/README.md, A release that needs a stop)."
        )


async def _run_once(connection: Connection, name: str, text: str) -> bool:
    digest = sha256(text.encode()).hexdigest()
    done = {row["name"]: row["hash"] for row in await connection.fetch(_SQL["done"])}
    if name in done:
        if done[name] != digest:
            raise StartError(f"sql/migrations/{name} was changed after it had run here. Put it back; write a new one.")
        return False
    if text.startswith(STOP):
        await _check_stopped(connection, name)
    if text.startswith(OUTSIDE):
        await connection.execute("set lock_timeout = 0")  # it waits for who is at the table, and holds up nobody
        for statement in filter(str.strip, text.split(";\n")):
            await connection.execute(statement, timeout=LASTS_MAX_S)
        await connection.execute("set lock_timeout = '5s'")
        await connection.execute(_SQL["record"], name, digest)
        return True
    async with connection.transaction():
        await connection.execute(text, timeout=LASTS_MAX_S)
        await connection.execute(_SQL["record"], name, digest)
    return True
