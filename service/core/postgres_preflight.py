"""One look, before a program starts, at what it needs: what is wrong is a sentence then, and no outage to wait for."""

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, Literal

import asyncpg

import sql
from service.core import postgres_url
from service.core.errors import CallboardError, StartError, text_of
from service.core.postgres_errors import SENTENCES, reason_of
from service.core.roles import check_rights
from service.core.servers import POSTGRES_ERRORS, Connection, open_plain
from service.core.settings import Settings
from service.core.transport import warn_if_exposed

ProgramName = Literal["API", "worker", "migrations"]

# What each holds beside its pool. API: store 2, keys, keyed, metrics. Worker: settle, journal, calls, ledger, lease,
# consumer, ingest 2, sweeper, report, and retention now and then. Migrations take one, and no pool.
HELD: Final = {"API": 5, "worker": 11}
ENCODING: Final = "UTF8"
ROUNDS: Final = 3
POOLER_TIMEOUT_S: Final = 5.0
ROOM_TRIES: Final = 3
ROOM_AGAIN_S: Final = 1.0
# A statement that another session prepared, or that is gone: both come of a connection that changes in between.
_STRANGE: Final = ("26000", "42P05")
_TRANSACTIONS: Final = (
    "DATABASE_URL leads to a pooler that gives each transaction another connection. Callboard needs connections of its"
    " own: name the server itself, or a pooler of sessions (PgBouncer: pool_mode = session; Supabase: port 5432;"
    " Neon: the host without -pooler)."
)
_SQL: Final = sql.queries("postgres_preflight")

log = logging.getLogger("callboard.boot")


def check_all(*checks: Callable[[], object]) -> None:
    """Do all, also after one that failed. Raises StartError with every sentence they raised, one a line."""
    sentences: list[str] = []
    for check in checks:
        try:
            check()
        except CallboardError as error:
            sentences.append(str(error))
    refuse(sentences)


def refuse(sentences: Sequence[str]) -> None:
    """Raises StartError with these sentences, where there are any."""
    lines = [line for sentence in sentences for line in sentence.splitlines()]
    if lines:
        raise StartError("\n".join(lines))


def connections_max(settings: Settings, program: ProgramName) -> int:
    """The most connections to Postgres that the program takes."""
    return HELD[program] + settings.pool if program in HELD else 1


async def check_postgres(settings: Settings, program: ProgramName) -> None:
    """Raises StartError with all that is wrong with Postgres, each in one sentence; what is only away may come back."""
    address = postgres_url.read(settings.database_url)
    for note in address.notes():
        log.warning(note)
    await warn_if_exposed("DATABASE_URL", address.hosts, address.weakness)
    async with AsyncExitStack() as stack:
        try:
            first = await _opened(settings, stack)
        except (*POSTGRES_ERRORS, ValueError) as error:
            refuse(_refused(error, program))
            log.warning("%s: %s", SENTENCES[reason_of(error)], text_of(error))
            return
        try:
            refuse(await _faults(settings, program, first, stack))
        except POSTGRES_ERRORS as error:
            refuse(_refused(error, program))
            log.warning("Postgres could not be looked at: %s: %s", SENTENCES[reason_of(error)], text_of(error))


async def _opened(settings: Settings, stack: AsyncExitStack) -> Connection:
    connection = await open_plain(settings, "boot")
    stack.callback(connection.terminate)
    return connection


def _refused(error: BaseException, program: ProgramName) -> list[str]:
    """What is wrong, not away: it would not pass by itself."""
    match error:
        case asyncpg.PostgresError() if reason_of(error) == "connections":
            return [f"Postgres has no connection left for the {program}: {_line(error)}."]
        case ssl.SSLError():
            why = error.reason or type(error).__name__
            return [f"The TLS of Postgres is refused: {why}. Look at sslmode and sslrootcert in DATABASE_URL."]
        case ConnectionError() if "rejected SSL upgrade" in str(error):
            return ["Postgres offers no TLS, and sslmode in DATABASE_URL asks for it."]
        case asyncpg.PostgresError() if reason_of(error) == "refused" or error.sqlstate == "08P01":
            return [f"Postgres refuses the connection: {_line(error)}. Look at DATABASE_URL."]
        case ValueError():
            return [f"DATABASE_URL can't be used: the driver refuses it ({type(error).__name__})."]
    return []


def _line(error: BaseException) -> str:
    """The server's own words, which hold no secret of ours."""
    return (text_of(error).splitlines() or [""])[0].rstrip(".")


async def _faults(settings: Settings, program: ProgramName, first: Connection, stack: AsyncExitStack) -> list[str]:
    server: Any = await first.fetchrow(_SQL["server"])
    faults = []
    if server["encoding"] != ENCODING:
        faults.append(
            f"The encoding of this database is {server['encoding']}, and Callboard needs {ENCODING}: make another with"
            f" `createdb --encoding={ENCODING} --template=template0 NAME`, and name that one in DATABASE_URL."
        )
    if server["read_only"] and program == "migrations":
        faults.append(f"{SENTENCES['read-only']}: no migration can run there. Name the primary in DATABASE_URL.")
    elif server["read_only"]:
        log.warning("%s. The %s is not ready until that ends.", SENTENCES["read-only"], program)
    if server["vectors"] is False:
        faults.append("This role may not use the schema of pgvector: grant usage on it to the role.")
    if program != "migrations":
        faults += await check_rights(first)
    pooled = first.get_server_pid() != server["pid"]
    try:
        async with asyncio.timeout(POOLER_TIMEOUT_S):
            if await _changes_between_statements(first, await _opened(settings, stack)):
                return [*faults, _TRANSACTIONS]
    except TimeoutError:
        if not pooled:
            raise
        return [*faults, _too_few(settings, program, 1)]
    return faults + await (_room_of_a_pooler if pooled else _room)(settings, program, first, stack)


async def _changes_between_statements(first: Connection, second: Connection) -> bool:
    """Whether two sessions that are open at once are served by one connection, or one session by several."""
    served: tuple[set[int], set[int]] = (set(), set())
    try:
        for _ in range(ROUNDS):
            served[0].add(await first.fetchval(_SQL["pid"]))
            served[1].add(await second.fetchval(_SQL["pid"]))
    except asyncpg.PostgresError as error:
        if error.sqlstate in _STRANGE:
            return True
        raise
    return bool(served[0] & served[1]) or max(map(len, served)) > 1


async def _room(settings: Settings, program: ProgramName, first: Connection, _stack: AsyncExitStack) -> list[str]:
    """Looked at for some seconds: the connections of a program that was killed take a moment to go."""
    need = connections_max(settings, program)
    for tries_left in reversed(range(ROOM_TRIES)):
        left, bound = _left(await first.fetchrow(_SQL["room"]))
        if left >= need:
            return []
        if tries_left:
            await asyncio.sleep(ROOM_AGAIN_S)
    room = f"Postgres has room for {max(0, left)} more connections ({bound})"
    return [f"{room}, and the {program} takes up to {need}: raise that bound, or {_lower(settings)}."]


def _lower(settings: Settings) -> str:
    return f"set CALLBOARD_POOL lower (it is {settings.pool})"


def _left(row: Any) -> tuple[int, str]:
    """The least that a bound leaves, and which. The check's own second connection is counted, and will be gone."""
    most, used = row["most"] - row["reserved"], row["used"] - 1
    bounds = [(most - used, f"max_connections = {row['most']}, {row['reserved']} reserved, {used} in use")]
    for whose in ("role", "database"):
        if (most := row[f"{whose}_most"]) is not None:
            used = row[f"{whose}_used"] - 1
            bounds += [(most - used, f"the {whose}'s limit is {most}, {used} in use")]
    return min(bounds)


async def _room_of_a_pooler(
    settings: Settings, program: ProgramName, _first: Connection, stack: AsyncExitStack
) -> list[str]:
    """A pooler's bounds can't be asked for: it gives what the program will take, or it doesn't."""
    need, count = connections_max(settings, program), 2

    async def open_one() -> None:
        nonlocal count
        connection = await _opened(settings, stack)
        await connection.fetchval(_SQL["pid"])
        count += 1

    opening = [asyncio.create_task(open_one()) for _ in range(need - count)]
    if opening:
        _, late = await asyncio.wait(opening, timeout=POOLER_TIMEOUT_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
    return [_too_few(settings, program, count)] if count < need else []


def _too_few(settings: Settings, program: ProgramName, count: int) -> str:
    sentence = f"DATABASE_URL leads to a pooler that gave {count} connections at once, and the {program} takes up to"
    bound = "raise its bound (PgBouncer: default_pool_size)"
    return f"{sentence} {connections_max(settings, program)}: {bound}, or {_lower(settings)}."
