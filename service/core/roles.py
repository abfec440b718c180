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
from service.core import postgres_url
from service.core.errors import StartError
from service.core.postgres_errors import reason_of
from service.core.servers import Connection, connect
from service.core.settings import Settings

# What migrations make; a test compares it with what they made.
TABLES: Final = (
    *("allowances", "attempts", "budgets", "calls", "dead_letters", "documents", "duties", "epoch", "events"),
    *("journal", "keys", "migrations", "operations", "pipelines", "prompts", "redis_owner", "runs", "sessions"),
    *("states", "work", "worker_metrics", "workers"),
)
SEQUENCES: Final = ("mailbox_seq", "relay")
FORMER_SEQUENCES: Final = ("place",)  # before 0023_field_words.sql
FUNCTIONS: Final = ("document_words(text)", "any_word(text)")
SCRAM_ROUNDS: Final = 4096
_SQL: Final = sql.queries("roles")

log = logging.getLogger("callboard.boot")


def as_owner(settings: Settings) -> Settings:
    """The settings of who migrates: DATABASE_URL is the owner's, where it has an address of its own."""
    return replace(settings, database_url=settings.database_owner_url or settings.database_url)


async def take_tables(owner: Connection) -> None:
    """Make the owner's own what another role made: in a database in which one role did everything.

    Raises StartError where the owner is no member of that role.
    """
    for row in await owner.fetch(_SQL["foreign_tables"], TABLES):
        if not row["is_member"]:
            raise StartError(
                f"The table {row['name']} belongs to the role {row['owner']}, and the role of DATABASE_OWNER_URL is no"
                " member of that: make it one as an administrator (deploy/README.md, Roles), or name"
                f" {row['owner']} in DATABASE_OWNER_URL."
            )
    async with owner.transaction():
        await _execute_all(owner, _SQL["change_owner"], [*TABLES], [*SEQUENCES, *FORMER_SEQUENCES], [*FUNCTIONS])


async def grant_rights(owner: Connection, settings: Settings) -> None:
    """Give the role of DATABASE_URL the rights that programs need and no more. Where the role is missing, it is made.

    Raises StartError where the owner may not do that, or where that role finds other tables than the owner does.
    """
    runner = (await _session_of_runner(owner, settings))["role"]
    async with owner.transaction():
        # First the membership: a member of the owner has every right, so that none would be granted.
        await _execute_all(owner, _SQL["revoke_membership"], runner)
        await _execute_all(owner, _SQL["grant_rights"], runner, [*TABLES], [*SEQUENCES], [*FUNCTIONS])
    runner_session: Any = await _session(settings)
    owner_session: Any = await owner.fetchrow(_SQL["session"])
    if (runner_session["database"], runner_session["migrations"]) != (
        owner_session["database"],
        owner_session["migrations"],
    ):
        raise StartError(
            "DATABASE_OWNER_URL and DATABASE_URL lead to different tables: let both name the same database, and give"
            f" the role {runner} the owner's search_path (deploy/README.md, Roles)."
        )


async def _execute_all(owner: Connection, query: str, *arguments: object) -> None:
    """Execute the statements that `query` returns."""
    for row in await owner.fetch(query, *arguments):
        await owner.execute(row["statement"])


async def _session_of_runner(owner: Connection, settings: Settings) -> Any:
    """What a session of DATABASE_URL is, whose role is made if there is none."""
    try:
        return await _session(settings)
    except asyncpg.PostgresError as error:
        address = postgres_url.read(settings.database_url)
        if reason_of(error) != "refused" or not address.user or await owner.fetchval(_SQL["role_exists"], address.user):
            raise
    try:
        stored = verifier(address.password, secrets.token_bytes(16)) if address.password else ""
        await _execute_all(owner, _SQL["create_role"], address.user, stored)
    except asyncpg.InsufficientPrivilegeError as error:
        raise StartError(
            f"DATABASE_URL names the role {address.user}, which does not exist, and the role of DATABASE_OWNER_URL may"
            " not create it: create it as an administrator (deploy/README.md, Roles), then migrate again."
        ) from error
    return await _session(settings)


async def _session(settings: Settings) -> Any:
    """The role that sessions of DATABASE_URL have, their database, and the table of migrations that they find."""
    connection = await connect(settings, "migrate")
    try:
        return await connection.fetchrow(_SQL["session"])
    finally:
        await connection.close()


def verifier(password: str, salt: bytes) -> str:
    """What Postgres stores of a password, by RFC 7677: the password itself would stand in the server's log.

    Raises StartError for one that is not ASCII, which SASLprep might change.
    """
    if not password.isascii():
        raise StartError(
            "The password in DATABASE_URL is not ASCII: create its role as an administrator, then migrate again."
        )
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, SCRAM_ROUNDS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    texts = [b64encode(part).decode() for part in (salt, stored, hmac.digest(salted, b"Server Key", "sha256"))]
    return f"SCRAM-SHA-256${SCRAM_ROUNDS}:{texts[0]}${texts[1]}:{texts[2]}"


async def check_rights(connection: Connection) -> list[str]:
    """A sentence for a role that can't do what programs do; in the log, one for a role that may do more."""
    session: Any = await connection.fetchrow(_SQL["rights"])
    role = f"The role {session['role']} of DATABASE_URL"
    if session["migrated"] and not session["writes"]:
        how = "run `callboard migrate` with this DATABASE_URL and DATABASE_OWNER_URL, which gives it what it needs"
        return [f"{role} may not write to Callboard's tables: {how}."]
    if session["superuser"] or session["owner"]:
        what = "is a superuser" if session["superuser"] else "owns the tables"
        log.warning("%s %s: programs need one that only reads and writes rows (deploy/README.md, Roles).", role, what)
    return []
