"""`python -m workers health [PID]`: whether the worker of this host is ready. The check of its container."""

import asyncio
import os
import socket
import sys
from typing import Any, Final, get_args

import sql
from service.core.errors import CallboardError, text_of
from service.core.redis_errors import Reason as RedisReason
from service.core.servers import POSTGRES_ERRORS, connect
from service.core.settings import Settings, load
from service.embedded import running

DEADLINE_S: Final = 3.0
SQL: Final = sql.queries("health")
WHY: Final = {
    "disconnected": "is disconnected: {reason}.",
    "draining": "is draining: it takes nothing new and will end.",
}


def main(arguments: list[str]) -> int:
    """Exit status 0 where it is ready, 1 with one sentence where not, 2 where `PID` is none.

    A container has a host name of its own, and one worker. Where a host has several, all of them must be ready, or the
    one that `PID` names.
    """
    if arguments and not (len(arguments) == 1 and arguments[0].isdecimal()):
        print("usage: python -m workers health [PID]", file=sys.stderr)
        return 2
    try:
        settings = running(load(os.environ))
        why = asyncio.run(ailing(settings, socket.gethostname(), int(arguments[0]) if arguments else None))
    except CallboardError as error:
        why = str(error)
    print(f"callboard worker: {why or 'ready'}", file=sys.stderr if why else sys.stdout)
    return 1 if why else 0


async def ailing(settings: Settings, host: str, pid: int | None) -> str | None:
    """Why it is not ready, or None."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            rows = await _rows(settings, host, pid)
    except POSTGRES_ERRORS as error:
        return f"its lease could not be read: {text_of(error)}"
    held = [row for row in rows if row["held"]]
    whose = f"worker {pid} of {host}" if pid else f"worker of {host}"
    if not held:
        stale = f" (the last one beat {rows[0]['beat_age_s']:.0f} s ago)" if rows else ""
        return f"no {whose} holds a lease{stale}. Is it still starting, or has it ended?"
    ill = next((row for row in held if row["state"] in WHY), None)
    return None if ill is None else f"worker {ill['pid']} of {host} {_why(ill)}"


def _why(row: Any) -> str:
    """The reason is one of those of Redis, or a sentence about Postgres."""
    reason = row["reason"]
    if reason is None or reason in get_args(RedisReason):
        reason = f"it can't read from Redis{f' ({reason})' if reason else ''}"
    return WHY[row["state"]].format(reason=reason)


async def _rows(settings: Settings, host: str, pid: int | None) -> list[Any]:
    connection = await connect(settings, "health")
    try:
        return list(await connection.fetch(SQL["of_host"], host, pid))
    finally:
        connection.terminate()
