"""A worker with little memory, and strangers whose answers unfold without end: `make hostile-test`."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Final

import asyncpg
import pytest
from redis.asyncio import Redis

from schemas.envelope import Attributes, Incoming
from schemas.identity import uuid7
from service.core import streams
from service.core.servers import connect
from service.core.settings import Settings
from service.intake.store import accept
from tests.eventually import eventually
from tests.faults.memory import joining, killed, peak_mb, small_group
from tests.processes import started
from tests.servers import NAMES
from tests.workers.models.test_model_answers import FOLDED, SAID
from tests.workers.test_web import always, bomb, server
from workers.web import REPLY_MAX

MEMORY: Final = 512 << 20
TOGETHER: Final = 20
BOUND_S: Final = 40.0
WORKER: Final = (sys.executable, "-m", "tests.unfolding")


class Strangers:
    """Who is posted to answers with 400 MB in 400 KB; so do the models, until they are told to be good."""

    def __init__(self) -> None:
        self.are_good = False
        self.bombs = 0
        self._folded: Final = bomb(400)

    async def answer(self, request: bytes) -> bytes:
        model = {b"/v1/chat/completions": "openai", b"/v1/messages": "anthropic"}.get(request.split()[1])
        if model and self.are_good:
            return await always("200 OK", json.dumps(SAID[model]).encode(), "connection: close\r\n")(request)
        self.bombs += 1
        return await always("200 OK", self._folded, f"connection: close\r\n{FOLDED}")(request)


class Behind:
    """What Postgres knows of the events, which are put there as the door does."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]", redis: Redis) -> None:
        self._connection: Final = connection
        self._redis: Final = redis

    async def put(self, kind: str, *data: dict[str, Any]) -> None:
        ids = [uuid7() for _ in data]
        events = [
            Incoming(event_id, "/strangers", str(event_id), kind, None, None, Attributes(), json.dumps(each).encode())
            for event_id, each in zip(ids, data, strict=True)
        ]
        await accept(self._connection, events)
        await streams.notify(self._redis, ids, NAMES.work)

    async def count(self, kind: str, condition: str) -> int:
        query = f"select count(*) from events e left join work w using (event_id) where e.type = $1 and {condition}"
        return int(await self._connection.fetchval(query, kind))

    async def are_all(self, kind: str, condition: str) -> bool:
        return await self.count(kind, condition) == TOGETHER


@asynccontextmanager
async def behind(settings: Settings) -> AsyncIterator[Behind]:
    connection = await connect(settings, "test")
    async with Redis.from_url(settings.redis_url) as redis:
        try:
            yield Behind(connection, redis)
        finally:
            await connection.close()


def environ_of(settings: Settings, url: str) -> dict[str, str]:
    return {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "CALLBOARD_CONCURRENCY": "100",
        "CALLBOARD_SIMULATE": "off",
        "CALLBOARD_WEB_ALLOW": settings.web_allow,
        "OPENAI_API_KEY": "k",
        "OPENAI_BASE_URL": f"{url}/v1",
        "ANTHROPIC_API_KEY": "k",
        "ANTHROPIC_BASE_URL": url,
    }


@pytest.mark.hostile
async def test_answers_that_unfold_to_400_mb_do_not_end_a_worker(settings: Settings, tmp_path: Path) -> None:
    """Twenty posts are refused, twenty calls of models wait for a better answer and get it; others are not kept up."""
    strangers, begun = Strangers(), monotonic()
    refused = f"e.status = 'dead' and e.attempts = 1 and e.error->>'message' ~ 'with more than {REPLY_MAX} bytes'"
    async with behind(settings) as events, server(strangers.answer) as hook:
        environ = environ_of(settings, hook.removesuffix("/hook/s3cret"))
        with (
            small_group(MEMORY) as group,
            started((*joining(group), *WORKER, str(tmp_path / "prompts")), tmp_path / "worker.log", environ) as worker,
        ):
            await worker.says("ready")
            await events.put("post.wanted", *({"url": hook} for _ in range(TOGETHER)))
            models = ("openai", "anthropic") * (TOGETHER // 2)
            await events.put("answer.wanted", *({"model": model, "n": n} for n, model in enumerate(models)))
            await events.put("nothing.wanted", {})
            await eventually(lambda: events.count("nothing.wanted", "e.status = 'succeeded'"), 10)
            await eventually(lambda: events.are_all("post.wanted", refused), BOUND_S)
            await eventually(lambda: events.are_all("answer.wanted", "w.cause ~ 'more than'"), BOUND_S)
            bombs, strangers.are_good = strangers.bombs, True
            await eventually(lambda: events.are_all("answer.wanted", "e.status = 'succeeded'"), BOUND_S)
            took_s = monotonic() - begun
            message = f"A9: {bombs} answers of 400 MB, {peak_mb(worker.process.pid):.0f} MB at most, "
            message += f"killed {killed(group)}, {took_s:.0f} s"
            print(message)
            assert worker.process.poll() is None, worker.output[-2000:]
            assert killed(group) == 0, message
            assert took_s < BOUND_S, message
