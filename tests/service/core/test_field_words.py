"""0023_field_words.sql: what a database of the release before holds is there under the new words, and goes on."""

from collections.abc import AsyncIterator, Mapping
from typing import Final
from uuid import UUID, uuid4

import asyncpg
import pytest
from msgspec import Struct
from msgspec.structs import replace

import sql
from schemas import Event
from schemas.identity import uuid7
from service.core import migrate as migrations
from service.core.errors import StartError
from service.core.migrate import migrate, must_stop
from service.core.servers import Connection, connect
from service.core.settings import Settings
from service.embedded import Server
from tests.board import Board, board_on
from tests.programs import program_of
from workers.kit import Pipeline, State

NAME: Final = "0023_field_words.sql"
ALL: Final = sql.migrations()
LATER: Final = "status = 'scheduled', due_at = now() + interval '1 hour', rung_at = null"
# What the release before had written in `work`, by the ids of its events.
OPEN: Final = {
    "queued": "status = 'queued', rung_at = now() - interval '1 hour', rung_to = 'work'",
    "front": "status = 'queued', rung_at = now() - interval '1 hour', rung_to = 'front', lost = 1",
    "unnotified": "status = 'queued', rung_at = null, rung_to = null",
    "running": "status = 'running', claim = 1, worker = $2, claimed_at = now(), first_at = now(), lost = 1,"
    " strikes = 1, deadline_at = now() + interval '1 hour', rung_at = now(), rung_to = 'work'",
    "retry": f"{LATER}, attempts = 2, cause = 'it failed'",
    "snoozed": f"{LATER}, put_offs = 3, misses = 2, waits_for = 'openai/m', cause = 'openai is away'",
    "later": f"{LATER}, ord = null",
}
WAITS: Final = ("retry", "snoozed", "later")
ENDED: Final = ("succeeded", "dead", "cancelled")
OUTCOMES: Final = {
    "failed": "retry",
    "put_off": "snoozed",
    "handed_back": "snoozed",
    "lost": "takeover",
    "dead": "settled",
    "succeeded": "settled",
}
KEYED: Final = ("retry", "later")


class Noted(Event, tag="noted", frozen=True):
    n: int


class Counted(Event, tag="counted", frozen=True):
    """Of an actor."""

    n: int


class Total(Struct, frozen=True):
    n: int = 0


async def add(counted: Counted, total: State[Total]) -> int:
    total.set(Total(total.value.n + counted.n))
    return total.value.n


async def double(noted: Noted) -> int:
    return noted.n * 2


PIPELINES: Final = {"noted": Pipeline(on=Noted, flow=[double]), "counted": Pipeline(on=Counted, flow=[add])}


@pytest.fixture
async def former(
    settings: Settings, servers: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Settings]:
    """A database of the release before, at its schema."""
    outside = await asyncpg.connect(servers[0].url)
    await outside.execute("create database former template template0")
    head, _, query = servers[0].url.partition("?")
    address = f"{head.rpartition('/')[0]}/former?{query}"
    at_former = replace(settings, database_url=address, database_owner_url="")
    with monkeypatch.context() as patched:
        patched.setattr(sql, "migrations", lambda: [each for each in ALL if each[0] < NAME])
        await migrate(at_former)
    yield at_former
    await outside.execute("drop database former with (force)")
    await outside.close()


async def filled(connection: Connection, worker: UUID) -> dict[str, UUID]:
    """A row of each status, in the words of the release before, with all that is written about one; their ids."""
    ids = {name: uuid7() for name in (*OPEN, *ENDED)}
    await connection.execute(
        "insert into workers (worker, host, pid, version, lease_until, state, slots, in_flight, pipelines)"
        " values ($1, 'there', 7, '0.1', now() - interval '1 minute', 'deaf', 1, 1, '{noted}')",
        worker,
    )
    for n, (name, event_id) in enumerate(ids.items()):
        key, kind = ("ann", "counted") if name in KEYED else (None, "noted")
        await connection.execute(
            "insert into events (event_id, source, id, type, partitionkey, data, status, finished_at)"
            " values ($1, '/before', $2, $6, $3, $4, $5, case $5 when 'open' then null else now() end)",
            *(event_id, name, key, f'{{"n": {n}}}', name if name in ENDED else "open", kind),
        )
        if name in OPEN:
            await connection.execute(
                "insert into work (event_id, tenant, key, ord, status, due_at)"
                " values ($1, 'default', $2, case when $2 <> '' then nextval('place') end, 'queued', now())",
                *(event_id, key),
            )
            arguments = (event_id, worker) if "$2" in OPEN[name] else (event_id,)
            await connection.execute(f"update work set {OPEN[name]} where event_id = $1", *arguments)
    for claim, outcome in enumerate(OUTCOMES, 1):
        await connection.execute(
            "insert into attempts (event_id, claim, run, attempt, worker, started_at, finished_at, outcome)"
            " values ($1, $2, 1, 1, $3, now(), now(), $4)",
            *(ids["succeeded"], claim, worker, outcome),
        )
    await connection.execute(
        "insert into calls (call_id, event_id, run, claim, step, at, prompt, version, hash, request_hash, asked,"
        " ordinal, provider, model, tokens_in, tokens_out, cost_usd, priced, ms, outcome, reply, simulated, memory,"
        " told_no) values (gen_random_uuid(), $1, 1, 6, 'ask', now(), 'p', 1, '', '', 'hash of the question', 1,"
        " 'openai', 'm', 1, 1, 0.5, true, 1, 'ok', 'reply', false, true, 2)",
        ids["succeeded"],
    )
    await connection.execute(
        "insert into dead_letters (dead_id, origin, event_id, type, reason, error, attempts, event)"
        " values (gen_random_uuid(), $1 || '/1', $1::uuid, 'noted', 'rejected', '{}', 1, '{}')",
        str(ids["dead"]),
    )
    await connection.execute(
        "insert into states (tenant, key, type, value, event_id)"
        " values ('default', 'ann', 'Total', '{\"n\": 100}', $1)",
        ids["succeeded"],
    )
    await connection.execute(
        "insert into pipelines (name, type, version, attempts_max, timeout_s, nodes, edges, follows, follows_type,"
        " needs_key)"
        " values ('noted', 'noted', '1', 5, 60, '[]', '[]', null, null, false),"
        " ('letters', null, '1', 5, 60, '[]', '[]', 'noted', 'noted', true)"
    )
    await connection.execute(
        "insert into keys (prefix, tenant, name, hash, scopes) values ('cb_former', 'default', '', '', '{read}')"
    )
    await connection.execute(
        "insert into sessions (prefix, hash, key, expires_at) values ('s', '', 'cb_former', now() + interval '1 hour')"
    )
    return ids


async def test_a_row_of_each_status_is_readable_and_goes_on(former: Settings) -> None:
    connection = await connect(former, "test")
    worker = uuid4()
    ids = await filled(connection, worker)
    assert await migrate(former) == [NAME]
    async with board_on(former, program_of(former, **PIPELINES), workers=0) as board:
        await reads(board, ids)
    assert await connection.fetchval("select api_key from sessions") == "cb_former"
    (snoozed,) = await connection.fetch("select * from work where event_id = $1", ids["snoozed"])
    assert (snoozed["snoozes"], snoozed["doubtful_snoozes"], snoozed["blocked_by"]) == (3, 2, "openai/m")
    (lost,) = await connection.fetch("select * from work where event_id = $1", ids["running"])
    assert (lost["consecutive_losses"], lost["crash_count"]) == (1, 1)
    await connection.execute("update work set due_at = now() where status = 'scheduled'")
    async with board_on(former, program_of(former, **PIPELINES)) as board:
        await goes_on(board, ids)
    await connection.close()


def status_of(name: str) -> str:
    return "scheduled" if name in WAITS else name if name in (*ENDED, "running") else "queued"


async def reads(board: Board, ids: Mapping[str, UUID]) -> None:
    """By the API alone: nothing runs."""
    for name, event_id in ids.items():
        assert (await board.show(str(event_id)))["status"] == status_of(name)
    succeeded = await board.show(str(ids["succeeded"]))
    whats = [moment["what"] for moment in succeeded["timeline"]]
    assert [what for what in whats if what in OUTCOMES.values()] == list(OUTCOMES.values())
    assert (succeeded["calls"], succeeded["cost_usd"]) == (1, 0.5)
    queued = await board.show(str(ids["queued"]))
    assert "notified" in [moment["what"] for moment in queued["timeline"]]
    assert len((await board.http.get("/events?key=ann")).json()["items"]) == len(KEYED)
    actor = (await board.http.get("/actors/ann")).json()
    assert (actor["states"], actor["mailbox"]) == ({"Total": {"n": 100}}, 2)
    assert actor["in_hand"]["event_id"] == str(ids["retry"])
    assert (await board.http.get("/pipelines/noted")).json()["follow_ups"] == ["letters"]
    assert (await board.http.get("/pipelines/letters")).json()["after"] == "noted"
    assert [item["state"] for item in (await board.http.get("/workers")).json()["items"]] == ["disconnected"]


async def goes_on(board: Board, ids: Mapping[str, UUID]) -> None:
    """All that is open ends, the actor's one behind the other; what has ended can be replayed."""
    assert (await board.http.post(f"/events/{ids['dead']}/replay")).status_code == 202
    results = {name: (await board.ended(str(ids[name])))["result"] for name in (*OPEN, "dead")}
    numbers = {name: n for n, name in enumerate(ids)}
    loose = {name: 2 * numbers[name] for name in results if name not in KEYED}
    assert results == {**loose, "retry": 100 + numbers["retry"], "later": 100 + numbers["retry"] + numbers["later"]}
    behind = await board.ended(await board.send("counted", {"n": 1000}, partitionkey="ann"))
    assert behind["result"] == results["later"] + 1000
    assert (await board.show(str(ids["running"])))["attempts"] == 1, "it was lost with its worker, uncharged"


async def test_while_workers_of_the_release_before_run_it_is_refused(
    former: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "STOPPED_S", 0.2)
    connection = await connect(former, "test")
    worker = uuid4()
    await filled(connection, worker)
    await connection.execute("update workers set lease_until = now() + interval '1 hour'")
    with pytest.raises(StartError, match=rf"{NAME} changes .*: process 7 on there\. Stop all workers and APIs"):
        await migrate(former)
    assert await migrations.pending(connection) == [NAME]
    monkeypatch.setattr(migrations, "STOPPED_S", 20.0)
    await connection.execute("update workers set lease_until = now() + interval '0.5 s'")
    assert await migrate(former) == [NAME], "the lease of one that was killed runs out"
    await connection.close()


def test_it_says_that_it_needs_a_stop() -> None:
    assert [name for name, _ in ALL if must_stop(name)] == [NAME]
