"""Forget: nothing is left in any table or key, by Postgres' and Redis' own exports; others keep what is theirs."""

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from click.testing import CliRunner
from msgspec import Struct, json
from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from schemas import Event
from schemas.identity import uuid7
from service.cli import command_line
from service.core.settings import Settings
from service.operations import forget
from service.operations.forget_redis import Target, mentions
from tests.board import TICKET, Board, board_on
from tests.eventually import eventually
from tests.keys import TOKEN, bearer, make_key
from tests.listening import listening_on
from tests.programs import program_of
from tests.servers import NAMES
from workers.bootstrap import program
from workers.engine.supervisor import Program
from workers.kit import Pipeline, Reject, Run, State

MARK = "erika.mustermann@example.org"
OTHER = "hans.meier@example.org"
SHARED = "the front desk"
TABLES = ("events", "work", "attempts", "calls", "journal", "dead_letters", "states", "documents")
BY = ("key", "subject", "source")
ATTRIBUTE = {"key": "partitionkey", "subject": "subject", "source": "source"}


class Noted(Event, tag="noted", frozen=True):
    text: str
    ends: str = "well"


class Passed(Event, tag="passed", frozen=True):
    text: str
    hops: int = 1


class Memory(Struct, frozen=True):
    texts: list[str] = []


class Waits:
    """Made anew for each test, in its loop."""

    running: asyncio.Event
    go_on: asyncio.Event


async def hear(run: Run, event: Noted, state: State[Memory]) -> str:
    if event.ends == "badly":
        raise Reject(f"nobody understands {event.text}")
    if event.ends == "never":
        Waits.running.set()
        await Waits.go_on.wait()
    state.set(Memory([*state.value.texts, event.text]))
    run.vectors.upsert("heard", str(run.event_id), event.text)
    run.emit(Passed(event.text), key=f"the desk of {event.text}")
    return event.text


async def hand_on(run: Run, event: Passed, state: State[Memory]) -> str:
    state.set(Memory([*state.value.texts, event.text]))
    if event.hops:
        run.emit(Passed(event.text, event.hops - 1), key=run.key)
    return event.text


def both(settings: Settings) -> Program:
    """The project's own pipelines, and these."""
    own = program_of(settings, noted=Pipeline(on=Noted, flow=[hear]), passed=Pipeline(on=Passed, flow=[hand_on]))
    base = program(settings)
    return replace(base, catalog={**base.catalog, **own.catalog}, wiring={**base.wiring, **own.wiring})


@pytest.fixture
async def board(settings: Settings) -> AsyncIterator[Board]:
    Waits.running, Waits.go_on = asyncio.Event(), asyncio.Event()
    async with board_on(settings, both(settings)) as running:
        yield running


async def found_in(board: Board, text: str) -> dict[str, int]:
    """In how many rows of each table, and in how many keys of Redis, the text stands."""
    found: dict[str, int] = {}
    connection = await asyncpg.connect(board.settings.database_url)
    try:
        tables = await connection.fetch("select tablename from pg_tables where schemaname = 'public'")
        for (table,) in tables:
            copied = io.BytesIO()
            await connection.copy_from_table(table, output=copied)
            found[table] = sum(text.encode() in line for line in copied.getvalue().splitlines())
    finally:
        await connection.close()
    async for name in board.redis.scan_iter():
        kind, content = await board.redis.type(name), name
        if kind == b"stream":
            content += repr(await board.redis.xrange(name)).encode()
        elif kind == b"string":
            content += await board.redis.get(name)
        found[f"redis {name.decode(errors='replace')}"] = text.encode() in content
    return {name: count for name, count in found.items() if count}


def said(by: str, text: str, **more: Any) -> dict[str, Any]:
    return {"partitionkey": SHARED, "subject": "a ticket", "source": "/mail", **more, ATTRIBUTE[by]: text}


async def send_all(board: Board, by: str, text: str) -> None:
    """Of one person everything there is: ended, replayed, dead, and to come; and what never was an event."""
    attributes = said(by, text)
    calls = await board.ended(await board.send("ticket.opened", {**TICKET, "body": text}, **attributes))
    assert calls["calls"], "the page on the model"
    again = await board.ended(await board.send("noted", {"text": text}, **attributes))
    await board.redis.xadd(f"{NAMES.live}:{again['event_id']}", {"d": text}, id="9-2")  # as it is told live
    if by == "key":  # alone in its mailbox
        assert (await board.http.post(f"/events/{again['event_id']}/replay", json={})).status_code == 202
        await board.ended(again["event_id"])
    await board.ended(await board.send("noted", {"text": text, "ends": "badly"}, **attributes))
    await board.send("noted", {"text": text}, **attributes, dueat="2099-01-01T00:00:00Z")
    document = {"id": f"D {text}", "text": f"what {text} is", "metadata": {ATTRIBUTE[by]: text}}
    await board.http.put("/collections/help/documents", json={"documents": [document]})
    no_event = {"type": "no.such.type", **attributes}
    await board.redis.xadd(NAMES.ingest, {"event": json.encode(no_event)})
    await board.redis.xadd(NAMES.ingest, {"event": f'{{"{ATTRIBUTE[by]}": "{text}", '})

    async def buried() -> bool:
        entries = await board.redis.xrange(NAMES.dead)
        children = await board.sql("select 1 from events where type = 'passed' and status = 'succeeded'")
        return sum(text.encode() in repr(entry).encode() for entry in entries) == 3 and len(children) >= 2

    assert await eventually(buried)


async def call(board: Board, *arguments: str) -> Any:
    line = ["forget", *arguments, "--url", str(board.http.base_url)]
    return await asyncio.to_thread(CliRunner(env={"CALLBOARD_API_KEY": TOKEN}).invoke, command_line({}), line)


@pytest.mark.parametrize("by", BY)
async def test_every_trace_is_gone_and_nothing_else(board: Board, by: str) -> None:
    await send_all(board, by, MARK)
    elsewhere = {"partitionkey": "another", "subject": "b", "source": "/b"}
    other = await board.ended(await board.send("noted", {"text": OTHER}, **elsewhere))
    there = await found_in(board, MARK)
    assert {*TABLES, f"redis {NAMES.dead}"} - there.keys() <= {"work", "attempts", "calls"}
    others = await found_in(board, OTHER)

    dry = await call(board, f"--{by}", MARK, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert await found_in(board, MARK) == there
    done = await call(board, f"--{by}", MARK, "--json")
    assert done.exit_code == 0, done.output
    assert await found_in(board, MARK) == {}
    assert {name: n for name, n in (await found_in(board, OTHER)).items() if "live" not in name} == {
        name: n for name, n in others.items() if "live" not in name
    }
    assert (await board.show(other["event_id"]))["status"] == "succeeded"

    answer = json.decode(done.output)
    foreseen = {row.split("\t")[0]: int(row.split("\t")[1]) for row in dry.stdout.splitlines()[1:]}
    assert answer["found"].pop("live") >= 1, "runs that have just ended may still be heard"
    foreseen.pop("live")
    assert (answer["found"], answer["left"]) == (foreseen, {}), "as the dry run said"
    assert {*TABLES, "dead"} <= foreseen.keys()
    (row,) = await board.sql("select actor, detail from operations where action = 'forget'")
    noted = json.decode(row["detail"])
    assert (noted["by"], noted["found"]["events"], noted["left"]) == (by, foreseen["events"], {})
    assert not (await call(board, f"--{by}", MARK)).stdout.splitlines()[1:], "a second time there is nothing"


async def test_another_tenant_keeps_its_own(board: Board) -> None:
    acme, other = [bearer(await make_key(board.settings, "admin", tenant=name)) for name in ("acme", "other")]
    ids = []
    for headers in (acme, other):
        event = {"type": "noted", "data": {"text": MARK}, "partitionkey": MARK}
        ids.append((await board.http.post("/events", json=event, headers=headers)).json()["event_id"])

    async def ended() -> bool:
        rows = await board.sql("select 1 from events where status = 'succeeded'")
        return len(rows) == 6  # each with its child and that one's

    assert await eventually(ended)
    done = (await board.http.post("/forget", json={"key": MARK}, headers=acme)).json()
    assert (done["found"]["events"], done["found"]["states"], done["left"]) == (3, 2, {})
    assert (await board.http.get(f"/events/{ids[0]}", headers=acme)).status_code == 404
    assert (await board.http.get(f"/events/{ids[1]}", headers=other)).status_code == 200
    assert {row["tenant"] for row in await board.sql("select tenant from events")} == {"other"}
    assert len(await board.sql("select 1 from states")) == 2


async def test_what_runs_is_stopped_and_writes_nothing_any_more(board: Board) -> None:
    await board.send("noted", {"text": MARK, "ends": "never"}, partitionkey=MARK)
    await Waits.running.wait()
    behind = await board.send("noted", {"text": MARK}, partitionkey=MARK)
    done = (await board.http.post("/forget", json={"key": MARK})).json()
    Waits.go_on.set()
    assert (done["found"]["events"], done["found"]["work"], done["left"]) == (2, 2, {}), behind
    executor = board.workers[0].executor

    async def idle() -> bool:
        return executor.in_flight == 0

    assert await eventually(idle)
    assert await found_in(board, MARK) == {}


async def test_a_call_that_is_under_way_is_waited_for(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    event_id = await board.send("noted", {"text": MARK}, partitionkey=MARK)
    await board.ended(event_id)
    await board.sql(
        "insert into calls (call_id, event_id, run, claim, step, at, prompt, version, hash, request_hash, provider,"
        " model, tokens_in, tokens_out, cost_usd, priced, ms, outcome, simulated, worker)"
        " values (gen_random_uuid(), $1, 1, 1, 's', now(), 'p', 1, '', '', 'o', 'm', 9, 9, 0, true,"
        " 9, 'open', false, $2)",
        UUID(event_id),
        board.workers[0].lease.worker,
    )
    monkeypatch.setattr(forget, "WAIT_S", 0.3)
    refused = await board.http.post("/forget", json={"key": MARK})
    assert refused.status_code == 409
    assert f"a worker has 1 of the events in hand still, {event_id} among them" in refused.json()["detail"]
    assert (await board.show(event_id))["status"] == "succeeded", "with its call it stays whole"
    await board.sql("update calls set outcome = 'ok', reply = $1", MARK)
    assert (await board.http.post("/forget", json={"key": MARK})).json()["left"] == {}
    assert await found_in(board, MARK) == {}


async def test_a_memory_that_somebody_has_in_hand_is_refused_with_a_sentence(board: Board) -> None:
    await board.ended(await board.send("noted", {"text": MARK}, partitionkey=SHARED, subject=MARK))
    await board.send("noted", {"text": OTHER, "ends": "never"}, partitionkey=SHARED)
    await Waits.running.wait()
    refused = await call(board, "--subject", MARK)
    assert refused.exit_code == 5
    assert "runs for an actor whose memory is to be forgotten" in refused.output
    Waits.go_on.set()

    async def done() -> bool:
        return bool((await call(board, "--subject", MARK)).exit_code == 0)

    assert await eventually(done)
    assert await found_in(board, MARK) == {}


async def test_what_was_cut_off_is_finished_by_the_next(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        await board.ended(await board.send("noted", {"text": MARK}, partitionkey=MARK))

    async def grown() -> bool:
        return len(await board.sql("select 1 from events where status = 'succeeded'")) == 9

    assert await eventually(grown)
    monkeypatch.setattr(forget, "BATCH", 1)
    remove_events, times = forget.Forgetter._remove_events, 0

    async def cut_off(self: Any, *arguments: Any) -> None:
        nonlocal times
        times += 1
        if times == 2:
            raise forget.InHand("cut off")
        await remove_events(self, *arguments)

    monkeypatch.setattr(forget.Forgetter, "_remove_events", cut_off)
    assert (await board.http.post("/forget", json={"key": MARK})).status_code == 409
    left = await board.sql("select parent from events")
    assert len(left) == 8, "a grandchild went first"
    done = (await board.http.post("/forget", json={"key": MARK})).json()
    assert (done["found"]["events"], done["left"]) == (8, {})
    assert await found_in(board, MARK) == {}


async def test_it_goes_on_where_there_is_more_than_a_request_takes(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forget, "BATCH", 2)
    monkeypatch.setattr(forget, "PAGE", 3)
    monkeypatch.setattr(forget, "EVENTS_MAX", 4)
    event = {"type": "noted", "data": {"text": MARK}, "dueat": "2099-01-01T00:00:00Z"}
    events = [{**event, "source": "/b" if n % 3 else "/a", "subject": MARK} for n in range(9)]
    sent = await board.http.post("/events/batch", json=[*events, {**event, "data": {"text": OTHER}}])
    assert sent.status_code == 202, sent.text
    first = (await board.http.post("/forget", json={"subject": MARK})).json()
    assert (first["found"]["events"], first["more"]) == (4, True)
    assert (await call(board, "--subject", MARK)).exit_code == 0
    assert await found_in(board, MARK) == {}
    assert len(await board.sql("select 1 from events")) == 1


@pytest.fixture
async def alone(settings: Settings) -> AsyncIterator[Board]:
    """An API without a worker: what is in the streams stays there."""
    async with board_on(settings, both(settings), workers=0) as running:
        yield running


async def test_what_waits_in_the_streams_goes_too(alone: Board) -> None:
    for text in (MARK, OTHER):
        event = {"type": "noted", "data": {"text": text}, "partitionkey": text}
        await alone.redis.xadd(NAMES.ingest, {"event": json.encode(event)})
        for tenant in ("default", "acme"):
            await alone.redis.xadd(
                NAMES.dead, {"event": json.encode(event), "event_id": str(uuid7()), "tenant": tenant}
            )
    dry = (await alone.http.post("/forget", json={"key": MARK, "dry_run": True})).json()
    assert (dry["found"], await alone.redis.xlen(NAMES.ingest)) == ({"ingest": 1, "dead": 1}, 2)
    assert (await alone.http.post("/forget", json={"key": MARK})).json() == {**dry, "left": {}}
    assert await alone.redis.xlen(NAMES.ingest) == 1
    tenants = [fields[b"tenant"] for _, fields in await alone.redis.xrange(NAMES.dead)]
    assert sorted(tenants) == [b"acme", b"acme", b"default"]


async def test_while_redis_is_away_nothing_is_forgotten_by_halves(alone: Board, settings: Settings) -> None:
    await alone.send("noted", {"text": MARK}, partitionkey=MARK)
    async with board_on(replace(settings, redis_url="redis://127.0.0.1:9/0"), both(settings), workers=0) as away:
        answer = await away.http.post("/forget", json={"key": MARK})
    assert answer.status_code == 503
    assert "Redis does not answer" in answer.json()["detail"]
    assert len(await alone.sql("select 1 from events")) == 1


@pytest.mark.parametrize("body", [{}, {"key": "a", "subject": "b"}, {"key": ""}, {"key": "a\0"}, {"keys": "a"}])
async def test_one_thing_is_named(alone: Board, body: dict[str, str]) -> None:
    assert (await alone.http.post("/forget", json=body)).status_code in (400, 422)


async def test_the_command_fails_where_something_is_left() -> None:
    answers = [
        {"found": {"events": 4}, "left": {"events": 9}, "more": True},
        {"found": {"events": 3}, "left": {"events": 2}, "more": False},
    ]

    async def answer(_: Request) -> JSONResponse:
        return JSONResponse(answers.pop(0))

    async with listening_on(Starlette(routes=[Route("/forget", answer, methods=["POST"])]), lifespan="off") as url:
        line = ["forget", "--key", MARK, "--url", url]
        result = await asyncio.to_thread(CliRunner(env={"CALLBOARD_API_KEY": TOKEN}).invoke, command_line({}), line)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == ["what\tfound\tleft", "events\t7\t2"]
    assert "Something is left, or came in meanwhile" in result.stderr


def test_what_is_no_event_is_about_whom_it_quotes() -> None:
    target = Target(key='a "quoted" é')
    event = {"type": "noted", "partitionkey": target.key}
    assert mentions(json.encode(event).decode(), target)
    assert mentions('{"type": "noted", "partitionkey": "a \\"quoted\\" \\u00e9"}', target)
    assert not mentions(json.encode({**event, "partitionkey": "b", "data": target.key}).decode(), target)
    assert mentions('{"partitionkey": "a \\"quoted\\" é", ', target)
    assert mentions(json.encode({"wrong": json.encode(event).decode()}).decode(), target)
    assert not mentions('{"partitionkey": "a"', target)
    assert mentions('{"type": "noted"}', Target(source="/http")), "where none is named"
