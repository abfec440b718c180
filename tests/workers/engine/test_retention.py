"""What is forgotten, and what is not."""

from uuid import UUID

import asyncpg
from redis.asyncio import Redis

from schemas import Event
from schemas.identity import uuid7
from service.settings import Settings
from tests.board import board_on
from tests.programs import program_of
from workers.engine.lease import Lease
from workers.engine.retention import BATCH, retain
from workers.kit import Pipeline


class Plain(Event, tag="plain", frozen=True):
    pass


async def nothing(event: Plain) -> None:
    return None


async def test_retention_forgets_what_ended_long_ago_and_nothing_else(settings: Settings) -> None:
    program = program_of(settings, plain=Pipeline(on=Plain, flow=[nothing]))
    async with board_on(settings, program) as board:
        old, young = [await board.ended(await board.send("plain", {})) for _ in range(2)]
        waiting = await board.send("plain", {}, dueat="2099-01-01T00:00:00Z")
        age = "interval '40 days'"
        aged = uuid_days_ago(40)
        for table in ("attempts", "events"):
            await board.sql(f"update {table} set event_id = $2 where event_id = $1", UUID(old["event_id"]), aged)
        await board.sql(f"update events set finished_at = finished_at - {age} where event_id = $1", aged)
        assert await retain(settings, board.redis, board.workers[0].lease) in (
            0,
            1,
        )  # or the worker's own cron was first
        left = {str(row["event_id"]) for row in await board.sql("select event_id from events")}
        assert left == {young["event_id"], waiting}
        assert {str(row["event_id"]) for row in await board.sql("select event_id from attempts")} == {young["event_id"]}


async def test_what_letters_keep_for_longer_does_not_keep_others_from_being_forgotten(settings: Settings) -> None:
    dead = [uuid_days_ago(50) for _ in range(BATCH)]
    ended, waits = uuid_days_ago(45), uuid_days_ago(44)
    connection = await asyncpg.connect(settings.database_url)
    for ids, status in ((dead, "dead"), ([ended], "succeeded"), ([waits], "open")):
        await connection.execute(
            "insert into events (event_id, source, id, type, data, status, finished_at)"
            " select id, '/t', id::text, 'plain', '{}', $2, clock_timestamp() - interval '40 days'"
            " from unnest($1::uuid[]) as id",
            ids,
            status,
        )
    await connection.execute(
        "insert into dead_letters (dead_id, origin, event_id, type, reason, error, attempts, event)"
        " select id, id::text, id, 'plain', 'rejected', '{}', 1, '{}' from unnest($1::uuid[]) as id",
        dead,
    )
    async with Redis.from_url(settings.redis_url) as redis:
        assert await retain(settings, redis, Lease(settings, [], lambda: 0, lambda: "ready")) == 1
    left = {row["event_id"] for row in await connection.fetch("select event_id from events")}
    await connection.close()
    assert left == {*dead, waits}


def uuid_days_ago(days: int) -> UUID:
    return UUID(int=uuid7().int - (days * 86_400_000 << 80))
