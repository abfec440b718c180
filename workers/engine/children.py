"""What a success says: the events its steps emitted, and one for each pipeline that follows its own."""

import logging
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from msgspec import json
from msgspec.structs import replace

from schemas.envelope import Attributes, Incoming
from schemas.identity import uuid7
from service.core.servers import Connection
from service.intake.store import accept, existing, identity
from workers.engine.claim import Claimed
from workers.kit.memory import Child

PAGE_BYTES = 4096

log = logging.getLogger("callboard.children")


def weight(children: Sequence[Child]) -> int:
    """How many rows of a batch they count as."""
    return sum(1 + len(child.data) // PAGE_BYTES for child in children)


def waits_s(children: Sequence[Child], now: datetime) -> set[int]:
    """In how many seconds children fall due; `now` is the time on the clock of Postgres."""
    return {int((child.due_at - now).total_seconds()) for child in children if child.due_at and child.due_at > now}


def incoming(claimed: Claimed, emitted: Sequence[Child], follow_ups: Sequence[str]) -> list[Incoming]:
    """Their ids say in which run, step and place they were said: a second time they are the same events."""
    if not emitted and not follow_ups:
        return []
    attributes = json.decode(claimed.attributes, type=Attributes)
    return [
        *(_emitted(claimed, attributes.traceparent, child) for child in emitted),
        *(_follow_up(claimed, attributes, name) for name in follow_ups),
    ]


def _emitted(claimed: Claimed, traceparent: str | None, child: Child) -> Incoming:
    return Incoming(
        event_id=uuid7(),
        source=f"/events/{claimed.event_id}",
        id=child.id,
        type=child.type,
        partitionkey=child.key,
        due_at=child.due_at,
        attributes=Attributes(dueat=child.due_at, traceparent=traceparent),
        data=bytes(child.data),
        tenant=claimed.tenant,
        parent=claimed.event_id,
    )


def _follow_up(claimed: Claimed, attributes: Attributes, name: str) -> Incoming:
    return Incoming(
        event_id=uuid7(),
        source=f"/events/{claimed.event_id}",
        id=f"{claimed.run}/after/{name}",
        type=claimed.type,
        partitionkey=claimed.partition_key,
        due_at=None,
        attributes=replace(attributes, dueat=None),
        data=claimed.data,
        tenant=claimed.tenant,
        parent=claimed.event_id,
        follow_up=name,
    )


async def accept_children(connection: Connection, children: Sequence[Incoming]) -> tuple[list[Incoming], set[UUID]]:
    """Stores them in the transaction that settles their parents; gives those that were not there yet, and who is due.

    Since such sources are refused from outside, nobody else can store an event under a child's identity; an older
    release let them in. Such an event stays what it is, and neither the child nor its parent pays for it: the child is
    stored under an id that nobody can foresee, and the log and a metric say so.
    """
    if not children:
        return [], set()
    fresh = await accept(connection, children)
    missing = [child for child in children if child.event_id not in fresh]
    rows = await existing(connection, missing) if missing else {}
    foreign = [child for child in missing if rows[identity(child)]["parent"] != child.parent]
    displaced = [replace(child, id=f"{child.id}/{child.event_id}") for child in foreign]
    for child in foreign:
        log.error(
            "event %s has the source and id of a child of event %s, and is none: the child is stored as %s/%s",
            rows[identity(child)]["event_id"],
            child.parent,
            child.id,
            child.event_id,
        )
    if displaced:
        fresh |= await accept(connection, displaced)
    due = {event_id for event_id, is_due in fresh.items() if is_due}
    taken = {child.event_id for child in displaced}
    own = [child for child in children if child.event_id in fresh and child.event_id not in taken]
    return own + displaced, due


def is_displaced(child: Incoming) -> bool:
    """Whether it had to be stored under another id than its own."""
    return child.id.endswith(f"/{child.event_id}")
