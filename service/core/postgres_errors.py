"""What an error of Postgres or of the way to it means, in words that may be shown to anybody."""

from typing import Final, Literal, TypeAlias

import asyncpg

from service.core.servers import Pool, pooler_is_full

Reason: TypeAlias = Literal[
    "away", "busy", "connections", "full", "read-only", "refused", "schema", "locked", "pgvector", "error"
]
# Whoever may ask is shown these, and nothing else: no address, no name, no text of the server's or the driver's.
SENTENCES: Final[dict[Reason, str]] = {
    "away": "Postgres does not answer",
    "busy": "all connections of the pool are in use",
    "connections": "Postgres has no connection left",
    "full": "Postgres has no room left: its disk or its memory is full",
    "read-only": "Postgres takes no writes: it is a standby, or read-only",
    "refused": "Postgres refuses the login, or a right that is needed",
    "schema": "migrations have not run",
    "locked": "Postgres takes too long: something is locked, or too much is asked of it",
    "pgvector": "Postgres has no pgvector that this role can use",
    "error": "Postgres refuses what is written",
}
# By the beginning of SQLSTATE, the longest that fits: https://www.postgresql.org/docs/18/errcodes-appendix.html
_STATES: Final[dict[str, Reason]] = {
    **dict.fromkeys(("08", "57P", "58"), "away"),
    "53": "full",
    "53300": "connections",
    "25006": "read-only",
    **dict.fromkeys(("28", "3D000", "42501"), "refused"),
    **dict.fromkeys(("42P01", "42703", "42704", "42883", "3F000"), "schema"),
    **dict.fromkeys(("55P03", "57014", "40"), "locked"),
}
# 22 data, 23 constraint, 54 too complex.
_ROW_FAULTS: Final = ("22", "23", "54")


class NoVectors(ValueError):
    """The type `vector` is not there for this role."""


def reason_of(error: BaseException, pool: Pool | None = None) -> Reason:
    """Why Postgres did not do it. With `pool`: a connection of which was waited for."""
    match error:
        case asyncpg.PostgresError() if pooler_is_full(error):
            return "connections"
        case asyncpg.PostgresError():
            state = error.sqlstate or ""
            fitting = [prefix for prefix in _STATES if state.startswith(prefix)]
            return _STATES[max(fitting, key=len)] if fitting else "error"
        case asyncpg.TargetServerAttributeNotMatched():
            return "read-only"
        case NoVectors():
            return "pgvector"
        case TimeoutError() if pool is not None and pool.get_size() >= pool.get_max_size() and not pool.get_idle_size():
            return "busy"
        case OSError() | asyncpg.InterfaceError() | asyncpg.InternalClientError():
            return "away"
    return "error"


def sentence(error: BaseException, pool: Pool | None = None) -> str:
    return SENTENCES[reason_of(error, pool)]


def is_row_fault(error: Exception) -> bool:
    """Whether Postgres, or the driver, refuses a value that is in one row: without that row it would do the rest."""
    refused = isinstance(error, asyncpg.PostgresError) and (error.sqlstate or "").startswith(_ROW_FAULTS)
    return refused or isinstance(error, asyncpg.DataError)
