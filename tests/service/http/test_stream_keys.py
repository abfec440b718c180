"""A stream that is open ends with the key that opened it."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from service.access import keys
from service.core.errors import Unavailable
from service.core.group_commit import GroupCommit
from service.core.settings import Settings
from tests.board import TICKET, Board, board_on
from tests.eventually import eventually
from tests.keys import bearer, make_key, revoke
from tests.sse import Client


@pytest.mark.parametrize("known", [True, False])
async def test_a_stream_ends_with_its_key(settings: Settings, monkeypatch: pytest.MonkeyPatch, *, known: bool) -> None:
    """Where Postgres does not say whether the key holds, who was let in stays."""
    monkeypatch.setattr(keys, "HELD_S", 0.1)
    operator, reader = await make_key(settings, "admin"), await make_key(settings, "read")
    async with board_on(settings, workers=0) as board:
        due_at = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        sent = {"type": "ticket.opened", "data": TICKET, "dueat": due_at}
        event_id = (await board.http.post("/events", json=sent, headers=bearer(operator))).json()["event_id"]
        board.http.headers.update(bearer(reader))
        client = Client(event_id)
        following = asyncio.create_task(client.follow(board.http))
        await eventually(lambda: _one(client))
        await revoke(settings, reader)
        await eventually(lambda: _refused(board))
        if not known:
            monkeypatch.setattr(GroupCommit, "put", _away)
        await board.sql("update work set status = 'queued', due_at = now()")
        await eventually(lambda: _ended(following) if known else _one(client, 2))
        if not known:
            following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert [message["status"] for message in client.of("status")] == (
        ["scheduled"] if known else ["scheduled", "queued"]
    )
    assert not client.over


async def _refused(board: Board) -> bool:
    return (await board.http.get("/events")).status_code == 401


async def _away(*_: object) -> None:
    raise Unavailable("Postgres is away")


async def _one(client: Client, many: int = 1) -> bool:
    return len(client.of("status")) >= many


async def _ended(task: "asyncio.Task[None]") -> bool:
    return task.done()
