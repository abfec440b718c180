"""Migrations, and every named statement, against a real Postgres."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import asyncpg
import pytest

import sql
from service.core.errors import StartError
from service.core.migrate import migrate, pending
from service.core.roles import as_owner
from service.core.servers import Connection, connect
from service.core.settings import Settings

# What runs for every event, or every second, on the tables that grow: each row is found by one of these, no other way.
HOT: Final = {
    "store.accept": set[str](),
    "store.existing": {"events_tenant_source_id_key", "work_pkey"},
    "claim.claim": {"work_pkey", "work_mailbox", "events_pkey"},
    "settle.settle": {"work_pkey", "events_pkey"},
    "settle.heads": {"work_mailbox"},
    "keys.open_events": {"work_of_quota_key"},
    "ledger.open_calls": {"calls_pkey", "events_pkey"},
    "ledger.close_calls": {"calls_pkey", "work_pkey", "events_pkey"},
    "catalog.stats": {"calls_at"},
    # each is asked only whether it has one
    "sweeper.due": {"work_unnotified", "work_notified", "work_without_seq", "work_held", "workers_pkey", "calls_open"},
}
QUEUED: Final = 20_000


def statements() -> dict[str, str]:
    return {f"{topic}.{name}": text for topic in sql.topics() for name, text in sql.queries(topic).items()}


@pytest.fixture
async def connection(settings: Settings) -> AsyncIterator[Connection]:
    held = await connect(as_owner(settings), "test")
    try:
        yield held
    finally:
        await held.close()


@pytest.fixture
async def empty(settings: Settings, connection: Connection) -> Settings:
    """The test's database with nothing in it."""
    await connection.execute("drop schema public cascade; create schema public")
    return settings


async def test_every_statement_fits_the_schema(connection: Connection) -> None:
    refused = {}
    for name, text in statements().items():
        try:
            await connection.prepare(text)
        except asyncpg.PostgresError as error:
            refused[name] = str(error)
    assert not refused


def test_names_are_there_once_and_texts_are_whole() -> None:
    assert len(statements()) > 20
    assert not [name for name, text in statements().items() if not text or text.endswith(";")]


def test_migrations_are_numbered_without_a_gap() -> None:
    assert [int(name[:4]) for name, _ in sql.migrations()] == list(range(1, len(sql.migrations()) + 1))


async def test_an_empty_database_gets_every_migration_once(empty: Settings, connection: Connection) -> None:
    names = [name for name, _ in sql.migrations()]
    assert await pending(connection) == names
    assert await migrate(empty) == names
    assert await pending(connection) == []
    assert await migrate(empty) == []


async def test_two_at_once_run_each_migration_once(empty: Settings) -> None:
    ran = await asyncio.gather(migrate(empty), migrate(empty))
    assert sorted(ran[0] + ran[1]) == [name for name, _ in sql.migrations()]


async def test_a_changed_migration_is_refused_by_name(settings: Settings, connection: Connection) -> None:
    changed = sql.migrations()[0][0]
    await connection.execute("update migrations set hash = 'of another text' where name = $1", changed)
    with pytest.raises(StartError, match=f"{changed} was changed") as refused:
        await migrate(settings)
    assert "write a new one" in str(refused.value)


async def test_a_migration_that_fails_leaves_nothing_and_goes_on_later(empty: Settings, connection: Connection) -> None:
    await connection.execute("create table epoch (in_the_way integer)")
    with pytest.raises(StartError, match='relation "epoch" already exists'):
        await migrate(empty)
    assert await connection.fetchval("select to_regclass('events')") is None
    await connection.execute("drop table epoch")
    assert len(await migrate(empty)) == len(sql.migrations())


async def _queue(connection: Connection) -> None:
    """A backlog, every second event with one of 50 keys, behind statistics that were taken when there was none."""
    for table in ("work", "events", "calls"):
        await connection.execute(f"alter table {table} set (autovacuum_enabled = off)")
        await connection.execute(f"analyze {table}")
    await connection.execute(
        "insert into events (event_id, source, id, type, data, partitionkey)"
        " select gen_random_uuid(), '/test', n::text, 'queued', '{}', case when n % 2 = 0 then 'key ' || n % 50 end"
        f" from generate_series(1, {QUEUED}) as n"
    )
    await connection.execute(
        "insert into work (event_id, tenant, partition_key, mailbox_seq, status, due_at, notified_at, notified_stream)"
        " select event_id, tenant, partitionkey, nextval('mailbox_seq'), 'queued', now(), now(), 'work' from events"
    )
    await connection.execute(
        "insert into calls (call_id, event_id, run, claim, step, at, prompt, version, hash, request_hash, provider,"
        " model, tokens_in, tokens_out, cost_usd, priced, ms, outcome, simulated)"
        " select gen_random_uuid(), event_id, 1, 1, 'step', now(), 'prompt', 1, '', '', 'openai', 'model',"
        " 9, 9, 0.1, true, 9, 'ok', false from events"
    )


async def _plan(connection: Connection, name: str, text: str) -> Any:
    """The plan that a held connection keeps: it knows the statement, not its arguments."""
    asked = len((await connection.prepare(text)).get_parameters())
    arguments = f"({', '.join(['null'] * asked)})" if asked else ""
    await connection.execute("set plan_cache_mode = force_generic_plan")
    await connection.execute(f'prepare "{name}" as {text}')
    return json.loads(await connection.fetchval(f'explain (format json) execute "{name}"{arguments}'))[0]["Plan"]


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", []):
        yield from _nodes(part)


@pytest.mark.parametrize("name", HOT)
async def test_hot_statements_look_rows_up_by_key(connection: Connection, name: str) -> None:
    await _queue(connection)
    nodes = list(_nodes(await _plan(connection, name, statements()[name])))
    tables = ("work", "events", "calls")
    whole = [node for node in nodes if node["Node Type"] == "Seq Scan" and node["Relation Name"] in tables]
    assert not whole
    by = {node["Index Name"]: node for node in nodes if node.get("Index Name", "").startswith(tables)}
    assert by.keys() == HOT[name]
    if name != "sweeper.due":
        assert not [index for index, node in by.items() if "Index Cond" not in node]


async def test_children_are_found_by_their_parent(connection: Connection) -> None:
    """By a plan that knows its arguments, as ours do (`plan_cache_mode`): few of many events have this parent."""
    await _queue(connection)
    await connection.execute(
        "update events set parent = (select min(event_id::text)::uuid from events) where id::integer % 1000 = 0"
    )
    await connection.execute("vacuum analyze events")
    parent = await connection.fetchval("select min(event_id::text)::uuid from events")
    values = ["'default'", *["null"] * 7, "50", f"'{parent}'", "1000000"]
    text = statements()["events.events"]
    for number in range(len(values), 0, -1):
        text = text.replace(f"${number}", values[number - 1])
    body = json.loads(await connection.fetchval(f"explain (analyze, format json) {text}"))[0]["Plan"]
    nodes = [node for node in _nodes(body) if node.get("Relation Name") == "events"]
    assert [node["Index Name"] for node in nodes] == ["events_of_parent"]
    assert nodes[0]["Actual Rows"] == QUEUED / 1000
    assert not nodes[0].get("Rows Removed by Filter")


async def test_a_seq_scan_would_be_seen(connection: Connection) -> None:
    await _queue(connection)
    plan = await _plan(connection, "unkeyed", "select event_id from work where attempts = $1")
    assert "Seq Scan" in [node["Node Type"] for node in _nodes(plan)]


@pytest.mark.parametrize("backlog", ["notified", "unnotified", "later"])
async def test_a_scrape_costs_the_same_whatever_is_stored(connection: Connection, backlog: str) -> None:
    """Each look at the backlog takes rows by an index and stops at its bound; nothing but open events is looked at."""
    await _queue(connection)
    if backlog != "notified":
        await connection.execute("update work set notified_at = null")
    if backlog == "later":
        await connection.execute("update work set due_at = now() + interval '1 day'")
    await connection.execute("vacuum analyze work")
    text = statements()["metrics.backlog"].replace("$1", "100").replace("$2", "100")
    body = json.loads(await connection.fetchval(f"explain (analyze, format json) {text}"))[0]["Plan"]
    reads = [node for node in _nodes(body) if "Relation Name" in node]
    assert {node["Relation Name"] for node in reads} == {"work"}
    assert not [node for node in reads if node["Node Type"] == "Seq Scan"]
    read = [node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in reads]
    assert max(read) <= 200
