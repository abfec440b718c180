"""A plan made while a table was empty must not be kept when a backlog comes: it would scan all of it for each claim."""

import json
from typing import Any
from uuid import uuid4

from service.core.roles import as_owner
from service.core.servers import Connection, connect
from service.core.settings import Settings
from tests.test_sql import statements

CLAIMS = 8  # after five, Postgres may keep a generic plan


async def test_a_plan_made_on_empty_tables_is_not_kept(settings: Settings) -> None:
    connection = await connect(as_owner(settings), "test")
    try:
        for table in ("work", "events"):
            await connection.execute(f"alter table {table} set (autovacuum_enabled = off)")
            await connection.execute(f"vacuum analyze {table}")
        await connection.execute(f"prepare claim as {statements()['claim.claim']}")
        for _ in range(CLAIMS):
            await connection.execute("execute claim (array[]::uuid[], null, 0, 200)")
        scanned = [node["Node Type"] for node in await _plan_with_a_backlog(connection)]
        assert "Seq Scan" not in scanned
        assert "Index Scan" in scanned
    finally:
        await connection.close()


async def _plan_with_a_backlog(connection: Connection) -> list[dict[str, Any]]:
    """What the prepared claim does to `work` and `events` with 20,000 events queued."""
    await connection.execute(
        "insert into events (event_id, source, id, type, data)"
        " select gen_random_uuid(), '/test', n::text, 'queued', '{}' from generate_series(1, 20000) as n"
    )
    await connection.execute(
        "insert into work (event_id, tenant, partition_key, mailbox_seq, status, due_at, notified_at, notified_stream)"
        " select event_id, tenant, partitionkey, nextval('mailbox_seq'), 'queued', now(), now(), 'work' from events"
    )
    ids = ", ".join(f"'{row['event_id']}'" for row in await connection.fetch("select event_id from work limit 100"))
    claim = f"execute claim (array[{ids}]::uuid[], '{uuid4()}', 0, 200)"
    body = json.loads(await connection.fetchval(f"explain (format json) {claim}"))
    return [node for node in _nodes(body[0]["Plan"]) if node.get("Relation Name") in ("work", "events")]


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for part in plan.get("Plans", []) for node in _nodes(part))]
