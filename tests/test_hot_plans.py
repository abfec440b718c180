"""What runs for every event looks its rows up by key, whatever the statistics say.

With 10,000 events running and 100,000 queued each hot statement is executed with the arguments of an ordinary batch,
and reads no more rows than it is about.
"""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import pytest

from schemas.envelope import Attributes, Incoming
from schemas.identity import uuid7
from schemas.outcome import Done, Later
from service.core.roles import as_owner
from service.core.servers import Connection, connect
from service.core.settings import Settings
from service.intake.store import accept
from tests.test_sql import statements
from workers.engine.claim import Claimed, claimed
from workers.engine.settle import Ending, _arguments
from workers.kit.memory import Facts

RUNNING: Final = 10_000
QUEUED: Final = 100_000
SLOTS: Final = 200  # of one worker
BATCH: Final = 100
# A look-up by key reads a row and some beside it in its mailbox; the sweep, one row of each notified mailbox.
ROWS_MAX: Final = 4 * BATCH
TABLES: Final = ("work", "events", "calls", "journal", "attempts", "states")
FILL: Final = (
    # what runs or backs off has a mailbox of its own or none; half of what is queued is in one of 100 mailboxes
    (
        "insert into events (event_id, source, id, type, data, partitionkey)"
        " select gen_random_uuid(), '/test', n::text, 'queued', '{}', case when n % 2 = 1 then null"
        f" when n <= {RUNNING} or n % 10 = 4 then 'own ' || n else 'key ' || n % 200 end"
        f" from generate_series(1, {RUNNING + QUEUED}) as n"
    ),
    # each worker holds SLOTS of those that run; a fifth of the others backs off, some of them wait for a model
    (
        "insert into work (event_id, tenant, partition_key, mailbox_seq, status, claim, worker, claimed_at,"
        " deadline_at, due_at, notified_at, notified_stream, blocked_by)"
        " select event_id, tenant, partitionkey, nextval('mailbox_seq'),"
        f" case when n <= {RUNNING} then 'running' when n % 10 >= 3 and n % 10 <= 4 then 'scheduled' else 'queued' end,"
        f" case when n <= {RUNNING} then 1 else 0 end,"
        f" case when n <= {RUNNING} then md5((n / {SLOTS})::text)::uuid end, now(), now() + interval '1 h',"
        " case when n % 10 >= 3 and n % 10 <= 4 then now() + interval '1 h' else now() end,"
        " case when n % 10 >= 3 and n % 10 <= 4 then null else now() end, 'work',"
        " case when n % 1000 = 3 then 'openai/model' end"
        " from (select *, id::integer as n from events) as numbered"
    ),
    (
        "insert into calls (call_id, event_id, run, claim, step, at, prompt, version, hash, request_hash, provider,"
        " model, tokens_in, tokens_out, cost_usd, priced, ms, outcome, simulated, worker)"
        " select event_id, event_id, 1, 1, 'step', now(), 'prompt', 1, '', '', 'openai', 'model', 9, 9, 0.1, true, 9,"
        " 'open', false, worker from work where status = 'running'"
    ),
)


class Explained:
    """A connection that executes each statement for its plan, and takes it back."""

    def __init__(self, connection: Connection) -> None:
        self._connection: Final = connection
        self.plan: dict[str, Any] = {}

    async def fetch(self, statement: str, *arguments: Any) -> list[Any]:
        transaction = self._connection.transaction()
        await transaction.start()
        try:
            plan = await self._connection.fetchval(f"explain (analyze, format json) {statement}", *arguments)
        finally:
            await transaction.rollback()
        self.plan = json.loads(plan)[0]["Plan"]
        return []


@pytest.fixture
async def connection(settings: Settings) -> AsyncIterator[Connection]:
    held = await connect(as_owner(settings), "test")
    try:
        for table in TABLES:
            await held.execute(f"alter table {table} set (autovacuum_enabled = off)")
        yield held
    finally:
        await held.close()


@pytest.mark.parametrize("analyzed", ["empty", "idle", "busy"])
async def test_hot_statements_read_only_what_they_are_about(connection: Connection, analyzed: str) -> None:
    """The statistics are those of tables with nothing in them, of an idle service, of one that is at work."""
    if analyzed == "idle":  # the queue was long, and one event is left
        await connection.execute(
            "insert into work (event_id, tenant, status, due_at, notified_at, notified_stream)"
            " select gen_random_uuid(), 'default', 'queued', now(), now(), 'work' from generate_series(1, 20000)"
        )
        await connection.execute("delete from work where event_id <> (select event_id from work limit 1)")
    if analyzed != "busy":
        await connection.execute(f"vacuum analyze {', '.join(TABLES)}")
    for statement in FILL:
        await connection.execute(statement)
    if analyzed == "busy":
        await connection.execute(f"vacuum analyze {', '.join(TABLES)}")
    too_many = {}
    async for name, plan in _plans(connection):
        reads = {_told(node): _rows(node) for node in _nodes(plan) if _reads(node)}
        if most := {told: rows for told, rows in reads.items() if rows > ROWS_MAX}:
            too_many[name] = most
    assert not too_many


async def test_a_scan_of_all_that_runs_would_be_seen(connection: Connection) -> None:
    for statement in FILL:
        await connection.execute(statement)
    explained = Explained(connection)
    await explained.fetch("select event_id from work where status = 'running' and attempts = 7")
    assert max(_rows(node) for node in _nodes(explained.plan) if _reads(node)) >= RUNNING


async def _plans(connection: Connection) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Each hot statement with the arguments of a batch, as the programs give them."""
    texts, explained = statements(), Explained(connection)
    worker = await connection.fetchval("select worker from work where status = 'running' order by event_id limit 1")
    running = await _claimed(connection, "w.status = 'running'")
    own = await _claimed(connection, f"w.worker = '{worker}'")
    queued = await _claimed(connection, "w.status = 'queued' and partition_key is null")
    mailboxes = [["default"] * BATCH, [f"key {n}" for n in range(0, 2 * BATCH, 2)]]
    moment = datetime.now(UTC)
    ids, claims = [each.event_id for each in running], [each.claim for each in running]
    asked: dict[str, Sequence[Any]] = {
        "claim.claim": ([event.event_id for event in queued], uuid4(), 0, SLOTS),
        "settle.settle": _arguments([_ending(n, each) for n, each in enumerate(running)]),
        "settle.heads": mailboxes,
        "resume.bring_forward": ("openai/model", BATCH, None),
        "journal.keep": (
            *(list(range(BATCH)), ids, [1] * BATCH, claims, ["step"] * BATCH),
            *([moment] * BATCH, ["{}"] * BATCH, [False] * BATCH),
        ),
        "lease.not_held": ([each.event_id for each in own], [each.claim for each in own], worker),
        "sweeper.sweep": (moment - timedelta(hours=1), moment - timedelta(hours=1), BATCH),
        "ledger.open_calls": _opened(running, moment, worker),
        "ledger.close_calls": _closed(ids),
    }
    for name, arguments in asked.items():
        await explained.fetch(texts[name], *arguments)
        yield name, explained.plan
    await accept(explained, [_incoming(n) for n in range(BATCH)])  # type: ignore[arg-type]
    yield "store.accept", explained.plan


async def _claimed(connection: Connection, which: str) -> list[Claimed]:
    rows = await connection.fetch(
        "select w.*, e.source, e.id, e.type, e.data, e.attributes, e.parent, e.follow_up"
        f" from work w join events e using (event_id) where {which} order by event_id limit {BATCH}"
    )
    return [claimed(row, row["worker"] or uuid4()) for row in rows]


def _ending(n: int, each: Claimed) -> Ending:
    outcome = Done(b"null") if n % 2 else Later(60.0, "the model is away", charged=False)
    return Ending(each, outcome, "pipeline", Facts())


def _opened(running: Sequence[Claimed], moment: datetime, worker: UUID) -> Sequence[Any]:
    what = ("step", moment, "prompt", 1, "", "", "", 1, "openai", "model", 0.1, True, worker, "default", moment.date())
    rows = [(uuid4(), each.event_id, each.run, each.claim, *what) for each in running]
    return [*zip(*rows, strict=True), False]


def _closed(ids: Sequence[UUID]) -> Sequence[Any]:
    return list(zip(*[(event_id, 9, 9, 0.1, 9.0, "ok", None, "reply", False, None) for event_id in ids], strict=True))


def _incoming(n: int) -> Incoming:
    return Incoming(uuid7(), "/test", f"new {n}", "queued", f"key {n}" if n % 2 else None, None, Attributes(), b"{}")


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", []):
        yield from _nodes(part)


def _reads(node: dict[str, Any]) -> bool:
    """Whether it reads rows of a table that grows with what is under way or stored."""
    name: str = node.get("Relation Name", node.get("Index Name", ""))
    return str(node["Node Type"]).endswith("Scan") and name.startswith(TABLES)


def _rows(node: dict[str, Any]) -> float:
    """How many rows it has looked at, for all that it was asked."""
    each = float(node["Actual Rows"]) + float(node.get("Rows Removed by Filter", 0))
    return each * float(node["Actual Loops"])


def _told(node: dict[str, Any]) -> str:
    return f"{node['Node Type']} of {node.get('Index Name', node.get('Relation Name'))}"
