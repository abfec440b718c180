"""A worker whose clock is an hour off, and whose clock steps while it runs: nothing waits longer or shorter for it."""

import asyncio
import sys
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from service.core.settings import Settings
from tests.board import Board, board_on
from tests.eventually import eventually
from tests.faketime import WrongClock
from tests.processes import started
from tests.skewed import WAIT_S, skewed

HOUR_S: Final = 3600
SLACK_S: Final = 1.5  # a turn of the sweeper, and a busy machine


@pytest.mark.parametrize(("off_s", "then_s"), [(HOUR_S, -HOUR_S), (-HOUR_S, HOUR_S)], ids=["ahead", "behind"])
async def test_waits_are_measured_by_postgres(settings: Settings, tmp_path: Path, off_s: int, then_s: int) -> None:
    clock = WrongClock(tmp_path, off_s)
    environ = {
        **clock.environ,
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "CALLBOARD_SIMULATE": "on",
        "CALLBOARD_DATA_DIR": str(tmp_path),
    }
    async with board_on(settings, skewed(settings), workers=0) as board:
        with started((sys.executable, "-m", "tests.skewed"), tmp_path / "worker.log", environ) as worker:
            await worker.says("worker ready")
            before = await _sent(board)
            await _both_tried(board, before)
            clock.set(then_s)  # in the middle of their waits
            await _waited(board, before)
            await _waited(board, await _sent(board))
            assert await board.sql("select 1 from attempts where outcome = 'lost'") == []
            assert len(await board.sql("select 1 from workers")) == 1, "it never lost its lease"


async def _sent(board: Board) -> list[str]:
    return [await board.send(f"skew.{kind}", {}) for kind in ("fails", "snoozes", "emits")]


async def _both_tried(board: Board, ids: list[str]) -> None:
    async def fact() -> bool:
        rows = await board.sql("select 1 from attempts where event_id = any ($1::uuid[])", ids)
        return len(rows) >= len(ids)

    await eventually(fact)


async def _waited(board: Board, ids: list[str]) -> None:
    """Each pause between two tries is as long as it should be, and what is shown of them is of the right hour."""
    fails, snoozes, emits = ids
    shown = await asyncio.gather(*(board.ended(event_id) for event_id in ids))
    assert [each["status"] for each in shown] == ["dead", "succeeded", "succeeded"]
    assert all(0 <= each <= WAIT_S + SLACK_S for each in await _pauses_s(board, fails))
    (snoozed_s,) = await _pauses_s(board, snoozes)
    assert WAIT_S <= snoozed_s <= WAIT_S + SLACK_S

    async def child() -> list[float]:
        rows = await board.sql(
            "select extract(epoch from c.finished_at - e.finished_at)::float as after_s from events c"
            " join events e on e.event_id = c.parent where c.parent = $1::uuid and c.status = 'succeeded'",
            emits,
        )
        return [row["after_s"] for row in rows]

    (after_s,) = await eventually(child)
    assert WAIT_S - 0.5 <= after_s <= WAIT_S + SLACK_S
    wrong = await board.sql(
        "select step ->> 'at' as at, started_at, finished_at from attempts a"
        " cross join lateral json_array_elements(a.steps) as step where event_id = any ($1::uuid[])"
        " and not (step ->> 'at')::timestamptz between started_at and finished_at",
        ids,
    )
    assert not wrong
    errors = await board.sql(
        "select 1 from events where event_id = $1::uuid"
        " and (error ->> 'at')::timestamptz between accepted_at and finished_at",
        fails,
    )
    assert len(errors) == 1


async def _pauses_s(board: Board, event_id: str) -> list[float]:
    rows = await board.sql(
        "select started_at, finished_at from attempts where event_id = $1::uuid order by claim", event_id
    )
    return [(after["started_at"] - before["finished_at"]).total_seconds() for before, after in pairwise(rows)]
