"""The dead stream, written by one relay from the table: at least once, each letter under an id of its own."""

import logging
from typing import Any, Final

from msgspec import json
from redis.asyncio import Redis
from redis.exceptions import ResponseError

import sql
from service.core import streams
from service.core.failpoints import hit
from service.core.servers import Connection
from service.core.settings import Settings

BATCH: Final = 500
BYTES_MAX: Final = 4 << 20
ROUNDS: Final = 8
DEAD_MAX: Final = 10_000
SQL: Final = sql.queries("dead_letter_relay")

log = logging.getLogger("callboard.relay")


async def relay_dead_letters(settings: Settings, connection: Connection, redis: Redis) -> None:
    """Write what is not in the stream yet: ROUNDS times BYTES_MAX at most, of which one is in memory at a time."""
    for _ in range(ROUNDS):
        if not await _relay_some(settings, connection, redis):
            return


async def _relay_some(settings: Settings, connection: Connection, redis: Redis) -> bool:
    """Whether more may be left. Ids are drawn and committed first, so that Redis refuses a repeat."""
    await connection.execute(SQL["number_letters"], BATCH)
    hit(settings, "letter_numbered")
    rows = await connection.fetch(SQL["unrelayed"], BATCH, BYTES_MAX)
    name = streams.names_of(settings).dead
    for row in rows:
        try:
            await redis.xadd(name, _fields(row), id=f"{row['relay_no']}-0", maxlen=DEAD_MAX, approximate=True)
        except ResponseError as error:
            if streams.wrong_type(error):
                raise streams.Misplaced(name) from error
            if "equal or smaller" not in str(error):
                raise  # it is there already, from a turn that ended before it could say so
    await connection.execute(SQL["relayed"], [row["dead_id"] for row in rows])
    return len(rows) == BATCH or 2 * sum(len(row["event"]) for row in rows) > BYTES_MAX


def _fields(row: Any) -> dict[Any, Any]:
    error = json.decode(row["error"])
    return {
        "tenant": row["tenant"],
        "event": row["event"],
        "dead_id": str(row["dead_id"]),
        "event_id": str(row["event_id"] or ""),
        "reason": row["reason"],
        "error": error["message"],
        "attempts": str(row["attempts"]),
    }
