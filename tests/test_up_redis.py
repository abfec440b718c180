"""`callboard up` beside Debian's own redis-server, and beside the Redis of a database that is gone."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from service.embedded.process import command_line
from tests.board import ENDED, TICKET
from tests.debian import redis_environment
from tests.eventually import eventually
from tests.processes import LAST_WORDS, descendants, up_on
from tests.servers import NAMES, open_folder, redis


@pytest.fixture
async def folder() -> AsyncIterator[Path]:
    with open_folder() as made:
        yield made


async def test_up_with_debians_redis_takes_over_what_an_older_database_has_left(folder: Path) -> None:
    (folder / "data").mkdir()
    async with redis(folder / "data" / "redis") as old, Redis.from_url(old.url) as client:
        await client.set(NAMES.owner, "a database that is gone")
        await client.xadd(NAMES.dead, {"dead_id": "of that database"})
    environ = await asyncio.to_thread(redis_environment, folder / "debian")
    with up_on(folder, environ) as up:
        output = await up.program.says(LAST_WORDS)
        assert "Traceback" not in output
        running = [command_line(pid) for pid in descendants(up.pid)]
        assert [line for line in running if line.startswith(str(folder / "debian" / "usr" / "bin" / "redis-server"))]
        async with up.client() as http:
            event = {"type": "ticket.opened", "data": TICKET}
            event_id = (await http.post("/events", json=event)).json()["event_id"]

            async def ended() -> str | None:
                status = str((await http.get(f"/events/{event_id}")).json()["status"])
                return status if status in ENDED else None

            assert await eventually(ended) == "succeeded"
            assert (await http.get("/readyz")).json()["degraded"] == []
        assert await up.program.ends(signal.SIGTERM) == 0
