"""The stream of an event: live, resumable, exact, over real HTTP."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest
from msgspec import Struct
from msgspec.structs import replace

from schemas import Event
from service.core.settings import Settings
from tests.board import Board, board_on, serving
from tests.eventually import eventually
from tests.keys import AS_UP_DOES, AT_HOME
from tests.models import with_keys
from tests.processes import START_S, Program, free_port, started
from tests.programs import program_of
from tests.sse import Client
from workers.kit import Pipeline, Run, parallel
from workers.simulator import running_simulator
from workers.simulator.behaviour import Behaviour


class Spoken(Event, tag="spoken", frozen=True):
    text: str = "Hello"


class One(Struct, frozen=True):
    text: str


class Two(Struct, frozen=True):
    text: str


async def one(run: Run, event: Spoken) -> One:
    return One(await run.llm.stream("tickets/language", returns=str, ticket={"subject": "one", "body": event.text}))


async def two(run: Run, event: Spoken) -> Two:
    return Two(await run.llm.stream("tickets/language", returns=str, ticket={"subject": "two", "body": event.text}))


async def quiet(event: Spoken) -> One:
    return One(event.text)


@asynccontextmanager
async def speaking(settings: Settings, token_ms: float = 20.0, flow: Pipeline | None = None) -> AsyncIterator[Board]:
    """A board whose models take `token_ms` for each token."""
    async with running_simulator(behaviour=Behaviour(latency_ms=1, token_ms=token_ms)) as url:
        spoken = with_keys(replace(settings, simulate="off"), openai_api_key="dummy", openai_base_url=f"{url}/v1")
        program = program_of(spoken, talk=flow or Pipeline(on=Spoken, flow=[parallel(one, two)]))
        async with board_on(spoken, program) as board:
            yield board


async def stored(board: Board, event_id: str) -> dict[str, str]:
    rows = await board.sql("select step, reply from calls where event_id = $1 and memory", event_id)
    return {row["step"]: row["reply"] for row in rows}


def by_step(client: Client) -> dict[str, str]:
    return {step: text for (step, _), text in client.texts.items() if text}


async def test_a_stream_from_the_first_status_to_the_end(settings: Settings) -> None:
    async with speaking(settings) as board:
        client = Client(await board.send("spoken", {}))
        async with asyncio.timeout(20):
            await client.follow(board.http)
        shown = await board.ended(client.event_id)
        assert by_step(client) == await stored(board, client.event_id)
    assert client.of("status")[-1] == {"status": "running"}
    assert {message["step"] for message in client.of("step")} == {"one", "two"}
    assert all(step["state"] == "done" and step["ms"] > 0 for step in client.of("step"))
    assert len(client.of("token")) > 6, "more than one piece each"
    assert not client.of("restart")
    assert client.heard[-1].data == {"status": "succeeded", "result": shown["result"]}
    numbers = [int(message.id) for message in client.heard]
    assert numbers == sorted(set(numbers)), "each seq once, in order"
    between = [message.data["step"] for message in client.heard if message.event == "token"]
    assert sorted(between) != between, "the branches come side by side"


@pytest.mark.parametrize("most", [1, 2, 3, 7])
async def test_a_client_that_comes_again_hears_each_thing_once(settings: Settings, most: int) -> None:
    """From another API process each time."""
    async with (
        speaking(settings) as board,
        serving(board.settings) as other,
        httpx.AsyncClient(headers=AT_HOME, base_url=other, timeout=30) as there,
    ):
        client = Client(await board.send("spoken", {}))
        ways = [board.http, there]
        async with asyncio.timeout(30):
            while not client.over:
                await client.follow(ways[len(client.heard) % 2], most)
        assert by_step(client) == await stored(board, client.event_id)
    assert not client.of("restart")
    numbers = [int(message.id) for message in client.heard]
    assert numbers == sorted(set(numbers))
    assert len(client.of("step")) == 2


async def test_late_clients_hear_the_same(settings: Settings) -> None:
    async with speaking(settings, token_ms=1) as board:
        event_id = await board.send("spoken", {})
        await board.ended(event_id)
        first, last = Client(event_id), Client(event_id)
        await first.follow(board.http)
        await board.redis.flushdb()
        await last.follow(board.http)
        read = await board.http.get(f"/events/{event_id}/stream", headers={"Last-Event-ID": last.last})
        assert by_step(first) == by_step(last) == await stored(board, event_id)
    assert not first.of("restart")
    assert [message.event for message in last.heard].count("restart") == len(last.of("token")) == 2
    assert first.of("step") == last.of("step")
    assert first.heard[-1] == last.heard[-1]
    assert read.status_code == 204


@pytest.mark.parametrize("again", [False, True])
async def test_redis_that_forgets_in_the_middle(settings: Settings, again: bool) -> None:
    async with speaking(settings) as board:
        client = Client(await board.send("spoken", {}))
        async with asyncio.timeout(30):
            if again:
                await client.follow(board.http, 8)
                await board.redis.flushdb()
                await client.follow(board.http)
            else:
                following = asyncio.create_task(client.follow(board.http))
                await eventually(lambda: asyncio.sleep(0, len(client.of("token")) > 4))
                await board.redis.flushdb()
                await following
        assert by_step(client) == await stored(board, client.event_id)
    assert client.heard[-1].event == "end"
    assert len(client.of("step")) == 2
    assert len(client.of("restart")) == (2 if again else 0)


async def test_where_nothing_happens_a_comment_tells_that_somebody_is_there(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.feed.listeners.COMMENT_S", 0.05)
    async with speaking(settings) as board:
        client = Client(await board.send("spoken", {}, dueat="2999-01-01T00:00:00Z"))
        following = asyncio.create_task(client.follow(board.http))
        await eventually(lambda: asyncio.sleep(0, client.comments > 2))
        assert [message.data for message in client.heard] == [{"status": "scheduled"}]
        await board.http.post(f"/events/{client.event_id}/cancel")
        await following
    assert client.heard[-1].data["status"] == "cancelled"


async def test_an_event_without_tokens_has_a_stream_and_no_log(settings: Settings) -> None:
    async with speaking(settings, flow=Pipeline(on=Spoken, flow=[quiet])) as board:
        client = Client(await board.send("spoken", {}))
        await client.follow(board.http)
        assert not await board.redis.exists(f"callboard:live:{client.event_id}")
    assert [message.event for message in client.heard][-2:] == ["step", "end"]
    assert client.of("step")[0]["state"] == "done"


async def test_there_is_no_stream_of_what_is_not_there(board: Board) -> None:
    for name in ("00000000-0000-7000-8000-000000000000", "x"):
        assert (await board.http.get(f"/events/{name}/stream")).status_code == 404
    event_id = await board.send("message.labelled", {"text": "a", "label": "b"})
    misread = await board.http.get(f"/events/{event_id}/stream", headers={"Last-Event-ID": "x"})
    assert misread.status_code == 400


async def test_who_asks_for_the_head_of_a_stream_alone_has_it_at_once(board: Board) -> None:
    """And the connection is free again, though the event has not ended."""
    event_id = await board.send("message.labelled", {"text": "a", "label": "b"}, dueat="2099-01-01T00:00:00Z")
    one = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(base_url=board.http.base_url, headers=AT_HOME, limits=one, timeout=5) as http:
        for _ in range(2):
            head = await http.head(f"/events/{event_id}/stream")
            assert head.status_code == 200
            assert head.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert "content-length" not in head.headers
        assert (await http.head("/events/0197b2c4-5d3e-7c1a-9f60-3a52d7c81e44/stream")).status_code == 404


async def test_streams_are_bounded_and_freed_when_their_clients_go(settings: Settings) -> None:
    async with speaking(replace(settings, streams_max=1), token_ms=200) as board:
        event_id = await board.send("spoken", {})
        async with board.http.stream("GET", f"/events/{event_id}/stream") as response:
            assert response.headers["cache-control"] == "no-cache"
            assert response.headers["x-accel-buffering"] == "no"
            lines = response.aiter_lines()
            await anext(lines)
            full = await board.http.get(f"/events/{event_id}/stream")
            assert (full.status_code, full.headers["retry-after"]) == (429, "5"), "one caller has all of them"

        async def freed() -> bool:
            async with board.http.stream("GET", f"/events/{event_id}/stream") as response:
                return response.status_code == 200

        await eventually(freed)
        await board.http.post(f"/events/{event_id}/cancel")
        client = Client(event_id)

        async def told_of_the_end() -> bool:
            await client.follow(board.http)
            return True

        await eventually(told_of_the_end)
        assert client.heard[-1].data["status"] == "cancelled"


async def test_an_api_that_stops_ends_its_streams_in_order(settings: Settings) -> None:
    """They go on at another one, and it has not to be waited for."""
    async with speaking(settings, token_ms=150) as board, running_api(board.settings) as (other, api):
        async with httpx.AsyncClient(headers=AT_HOME, base_url=other, timeout=30) as there:
            client = Client(await board.send("spoken", {}))
            following = asyncio.create_task(client.follow(there))
            await eventually(lambda: asyncio.sleep(0, len(client.of("token")) > 2))
            assert await api.ends(signal.SIGTERM) == 0
            await following
        assert not client.over
        await client.follow(board.http)
        assert by_step(client) == await stored(board, client.event_id)
    numbers = [int(message.id) for message in client.heard]
    assert numbers == sorted(set(numbers))


@asynccontextmanager
async def running_api(settings: Settings) -> AsyncIterator[tuple[str, Program]]:
    """The API as a program of its own; it ends long before its grace time."""
    port = free_port()
    environ = {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "CALLBOARD_PORT": str(port),
        "CALLBOARD_GRACE_S": "600",
        "CALLBOARD_DATA_DIR": settings.data_dir,
        **AS_UP_DOES,
    }
    command = (sys.executable, "-m", "service")
    with started(command, Path(settings.data_dir) / "api.log", environ) as api:
        async with httpx.AsyncClient(headers=AT_HOME, base_url=f"http://127.0.0.1:{port}") as http:
            await eventually(lambda: answers(http), START_S)
        yield f"http://127.0.0.1:{port}", api


async def answers(http: httpx.AsyncClient) -> bool:
    with suppress(httpx.TransportError):
        return (await http.get("/readyz")).status_code == 200
    return False
