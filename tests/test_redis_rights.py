"""A user of Redis who may do exactly what deploy/README.md says, and one who may not touch arq's keys."""

import re
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from service.core.preflight import check_redis
from service.core.settings import Settings
from tests.board import TICKET, Board, board_on
from tests.debian import redis_environment
from tests.eventually import eventually
from tests.redis_servers import RedisServer, redis_server
from tests.servers import NAMES, open_folder
from workers.engine import retention

ROOT: Final = Path(__file__).parent.parent
PASSWORD: Final = "of-this-user"
KEYS: Final = ("ingest", "front", "work", "dead", "epoch", "owner", "live:*", "limit:*", "permits:*", "quota:*", "apis")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with open_folder() as made:
        yield made


@pytest.fixture(params=["of the wheel", "of Debian"])
async def server(folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[RedisServer]:
    """Redis 6.2, and the one that is newer."""
    environ = redis_environment(folder / "debian") if request.param == "of Debian" else None
    async with redis_server(folder / request.param.replace(" ", "-"), environ=environ) as running:
        yield running


def rights() -> list[str]:
    """The line of the README, for a password of ours."""
    (line,) = re.findall(r"^ACL (SETUSER callboard .*)$", (ROOT / "deploy/README.md").read_text("utf-8"), re.MULTILINE)
    return str(line).replace("PASSWORD", PASSWORD).split()


def as_user(settings: Settings, server: RedisServer) -> Settings:
    return replace(settings, redis_url=server.url(f"callboard:{PASSWORD}@"), simulate="on")


async def test_the_rights_of_the_readme_are_enough(settings: Settings, server: RedisServer) -> None:
    async with Redis.from_url(server.url()) as admin:
        await admin.execute_command("ACL", *rights())
        await check_redis(as_user(settings, server))
        async with board_on(as_user(settings, server)) as board:
            await everything(board)
            assert (await board.http.get("/readyz")).json()["degraded"] == []
        assert await refused(admin) == set()
        assert not [key for key in await admin.keys() if not key.startswith(b"callboard:")]


async def refused(admin: Redis) -> set[str]:
    """What was, but for the name that the test's own client says on connecting."""
    return {str(row["object"]) for row in await admin.acl_log()} - {"client", "client|setinfo"}


async def everything(board: Board) -> None:
    """Events by both ways, a letter, an alarm, a cancellation, a stream of an event, limits, metrics, retention."""
    event_id = await board.send("ticket.opened", TICKET)
    await board.http.post(f"/events/{event_id}/cancel")
    await board.ended(event_id)
    assert (await board.http.get(f"/events/{event_id}/stream")).status_code == 200
    assert (await board.ended(await board.send("ticket.opened", TICKET)))["status"] == "succeeded"
    await board.redis.xadd(NAMES.ingest, {"event": b"no event"})
    assert await eventually(lambda: board.redis.exists(NAMES.dead))
    parts: Any = board.workers[0]
    script = board.redis.register_script("return redis.call('HSET', KEYS[1], 'a', 1) + redis.call('ZCARD', KEYS[2])")
    assert await script(keys=[f"{NAMES.limit}:x/y", f"{NAMES.permits}:x/y"]) == 1
    assert "callboard_redis_up 1.0" in (await board.http.get("/metrics/fleet")).text
    await parts.retain()
    await parts.arq.enqueue_job("wake", _job_id="wake:1")

    async def notified() -> bool:
        return not await board.redis.exists(f"{NAMES.arq}:job:wake:1")

    assert await eventually(notified)


async def test_without_arqs_keys_events_and_retention_go_on(
    settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retention, "EVERY", timedelta(seconds=1))
    keys = [f"~callboard:{key}" for key in KEYS]
    words = [word for word in rights() if word != "~callboard:*"]
    async with redis_server(folder / "without-arq") as server, Redis.from_url(server.url()) as admin:
        await admin.execute_command("ACL", *words, *keys)
        async with board_on(as_user(settings, server)) as board:
            old = await board.ended(await board.send("ticket.opened", TICKET))
            assert old["status"] == "succeeded"
            before = "019a0000-0000-7000-8000-000000000001"
            await board.sql(
                "insert into events select (jsonb_populate_record(e, jsonb_build_object('event_id', $2::text,"
                " 'id', 'old', 'finished_at', now() - interval '90 days'))).* from events e where event_id = $1",
                old["event_id"], before,
            )  # fmt: skip

            async def forgotten() -> bool:
                return not await board.sql("select 1 from events where event_id = $1", before)

            assert await eventually(forgotten)
            assert (await board.ended(await board.send("ticket.opened", TICKET)))["status"] == "succeeded"
            (worker,) = (await board.http.get("/workers")).json()["items"]
            assert (worker["state"], worker["reason"]) == ("ready", None)
        assert caplog.text.count("arq sets no alarms") == 1
        assert "arq ended and starts again" not in caplog.text
        assert {each.split(":")[1] for each in await refused(admin)} == {"arq"}
