"""A worker opens no port: every few seconds it writes its numbers into Postgres, and the API shows them."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import json

import sql
from service.core.metrics import Meters, encode
from service.core.servers import connect
from service.core.settings import Settings
from workers.engine.lease import Lease

REPORT_S: Final = 10.0  # a tenth of a statement a second: an idle worker may make two
STATES: Final = ("closed", "half_open", "open")
SQL: Final = sql.queries("report")


async def report(settings: Settings, meters: Meters, lease: Lease, breakers: Callable[[], Mapping[str, str]]) -> None:
    """Report until cancelled; an error ends it, and the supervisor starts it again. It has a connection of its own."""
    connection = await connect(settings, "report")
    try:
        while True:
            worker, standing, lag_s = await lease.guard(), breakers(), meters.lag_max_s
            _look(meters, standing)
            numbers = (worker, lag_s, json.encode(standing).decode(), encode(meters.snapshot()))
            if await connection.fetchval(SQL["report"], *numbers) is None:
                async with connection.transaction():
                    await connection.execute(SQL["ordinals_alone"])
                    await connection.execute(SQL["first_report"], *numbers)
            meters.lag_max_s = 0.0
            await asyncio.sleep(REPORT_S)
    finally:
        connection.terminate()


def _look(meters: Meters, breakers: Mapping[str, str]) -> None:
    """What is not counted when it happens."""
    meters.set("callboard_worker_cpu_seconds_total", time.process_time())
    for where, now in breakers.items():
        provider, _, model = where.partition("/")
        for state in STATES:
            meters.set("callboard_breaker_state", float(state == now), (provider, model, state))
