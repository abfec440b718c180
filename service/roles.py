"""Two roles of Postgres: the owner, DATABASE_OWNER_URL, migrates; the runner, DATABASE_URL, reads and writes rows.

Without an owner's address one role does both, which programs say at boot.
"""

import hashlib
import hmac
import logging
import secrets
from base64 import b64encode
from typing import Any, Final

import asyncpg
from msgspec.structs import replace

import sql
from service import postgres_url
from service.errors import StartError
from service.postgres_errors import reason_of
from service.resources import Connection, connect
from service.settings import Settings

# What migrations make; a test compares it with what they made.
TABLES: Final = (
    *("allowances", "attempts", "budgets", "calls", "dead_letters", "documents", "duties", "epoch", "events"),
    *("journal", "keys", "migrations", "operations", "pipelines", "prompts", "redis_owner", "runs", "sessions"),
    *("states", "work", "worker_metrics", "workers"),
)
SEQUENCES: Final = ("place", "relay")
FUNCTIONS: Final = ("document_words(text)", "any_word(text)")
SCRAM_ROUNDS: Final = 4096
_SQL: Final = sql.queries("roles")

log = logging.getLogger("callboard.boot")


def as_owner(settings: Settings) -> Settings:
    """The settings of who migrates: DATABASE_URL is the owner's, where it has an address of its own."""
    return replace(settings, database_url=settings.database_owner_url or settings.database_url)


async def take(owner: Connection) -> None:
    """Make tables that another role made its own: of a database in which one role did everything.

    Raises StartError where the owner may not speak for that role.
    """
    for row in await owner.fetch(_SQL["owned"], TABLES):
        if not row["ours"]:
            raise StartError(
                f"The table {row['name']} belongs to the role {row['owner']}, for which that of DATABASE_OWNER_URL may"
                f' not speak: `grant "{row["owner"]}" to` it as an administrator, or name that role there.'
            )
    async with owner.transaction():
        await _execute_all(owner, _SQL["taking"], [*TABLES], [*SEQUENCES], [*FUNCTIONS])


async def grant(owner: Connection, settings: Settings) -> None:
    """Give the role of DATABASE_URL the rights that programs need and no more, and make it where it is missing.

    Raises StartError where the owner may not do that, or that role finds other tables than the owner's.
    """
    runner = await _runner(owner, settings)
    async with owner.transaction():
        await _execute_all(
            owner, _SQL["parting"], runner
        )  # first: what a member of the owner may do is not granted to it
        await _execute_all(owner, _SQL["granting"], runner, [*TABLES], [*SEQUENCES], [*FUNCTIONS])
    await _check(owner, settings, runner)


async def _execute_all(owner: Connection, query: str, *arguments: object) -> None:
    for row in await owner.fetch(query, *arguments):
        await owner.execute(row["statement"])


async def _runner(owner: Connection, settings: Settings) -> str:
    """The role that sessions of DATABASE_URL act as, which is made if there is none."""
    try:
        return await _acting(settings)
    except asyncpg.PostgresError as error:
        address = postgres_url.read(settings.database_url)
        if reason_of(error) != "refused" or not address.user or await owner.fetchval(_SQL["there"], address.user):
            raise
    try:
        kept = verifier(address.password, secrets.token_bytes(16)) if address.password else ""
        statement = await owner.fetchval(_SQL["making"], address.user, kept)
        await owner.execute(statement)
    except asyncpg.InsufficientPrivilegeError as error:
        raise StartError(
            f"There is no role {address.user}, which DATABASE_URL names, and that of DATABASE_OWNER_URL may make none:"
            " make it as an administrator (deploy/README.md, Roles), then migrate again."
        ) from error
    return await _acting(settings)


async def _acting(settings: Settings) -> str:
    connection = await connect(settings, "migrate")
    try:
        role: str = await connection.fetchval(_SQL["acting"])
        return role
    finally:
        await connection.close()


async def _check(owner: Connection, settings: Settings, runner: str) -> None:
    connection = await connect(settings, "migrate")
    try:
        found: Any = await connection.fetchrow(_SQL["acting"])
    finally:
        await connection.close()
    ours: Any = await owner.fetchrow(_SQL["acting"])
    if (found["database"], found["migrations"]) != (ours["database"], ours["migrations"]):
        raise StartError(
            "DATABASE_OWNER_URL and DATABASE_URL lead to different tables: let both name the same database, and give"
            f" the role {runner} the owner's search_path (deploy/README.md, Roles)."
        )


def verifier(password: str, salt: bytes) -> str:
    """What Postgres keeps of a password, by RFC 7677: the password itself would stand in the server's log.

    Raises StartError for one that is not ASCII, which SASLprep might change.
    """
    if not password.isascii():
        raise StartError("The password in DATABASE_URL is not ASCII: make its role yourself, then migrate again.")
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, SCRAM_ROUNDS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    texts = [b64encode(each).decode() for each in (salt, stored, hmac.digest(salted, b"Server Key", "sha256"))]
    return f"SCRAM-SHA-256${SCRAM_ROUNDS}:{texts[0]}${texts[1]}:{texts[2]}"


async def check_rights(connection: Connection) -> list[str]:
    """A sentence for a role that can't do what programs do; in the log, one for a role that may do more."""
    found: Any = await connection.fetchrow(_SQL["rights"])
    role = f"The role {found['role']} of DATABASE_URL"
    if found["migrated"] and not found["writes"]:
        how = "run `callboard migrate` with this DATABASE_URL and DATABASE_OWNER_URL, which gives it what it needs"
        return [f"{role} may not write to Callboard's tables: {how}."]
    if found["superuser"] or found["owner"]:
        what = "is a superuser" if found["superuser"] else "owns the tables"
        log.warning("%s %s: programs need one that only reads and writes rows (deploy/README.md, Roles).", role, what)
    return []
