"""What ended long ago is forgotten, and nothing else."""

from typing import Any
from uuid import UUID

import pytest

from schemas import Event
from schemas.identity import uuid7
from service.settings import Settings
from tests.board import board_on
from tests.eventually import eventually
from tests.programs import program_of
from workers.engine import retention
from workers.engine.retention import retain
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


def uuid_days_ago(days: int) -> UUID:
    return UUID(int=uuid7().int - (days * 86_400_000 << 80))


async def test_what_is_dead_does_not_keep_the_rest(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dead letters are kept for longer: more of them than a turn has batches, older than all that may go."""
    monkeypatch.setattr(retention, "BATCH", 2)
    monkeypatch.setattr(retention, "BATCHES", 3)
    async with board_on(settings, program_of(settings, plain=Pipeline(on=Plain, flow=[nothing]))) as board:
        for days, status in [*((60, "dead") for _ in range(9)), *((40, "succeeded") for _ in range(5))]:
            at = f"clock_timestamp() - interval '{days} days'"
            event_id = uuid_days_ago(days)
            await board.sql(
                "insert into events (event_id, tenant, source, id, type, attributes, data, status, finished_at) "
                f"values ($1, 'default', '/', $2, 'plain', '{{}}', '{{}}', $3, {at})",
                *(event_id, str(event_id), status),
            )
            if status == "dead":
                await board.sql(
                    "insert into dead_letters (dead_id, origin, type, reason, error, attempts, event, event_id, at) "
                    f"values ($1, $2, 'plain', 'rejected', '{{\"message\":\"\"}}', 1, '{{}}', $1, {at})",
                    *(event_id, str(event_id)),
                )

        async def left() -> Any:
            await board.sql("update duties set held_until = '-infinity' where duty = 'retention'")
            await retain(settings, board.redis, board.workers[0].lease)
            rows = await board.sql("select status, count(*) as many from events group by 1")
            return {row["status"]: row["many"] for row in rows} == {"dead": 9}

        assert await eventually(left)
