"""What a success says: the events its steps emitted, and one for each pipeline that follows its own."""

from collections.abc import Sequence
from datetime import datetime

from msgspec import json
from msgspec.structs import replace

from schemas.envelope import Attributes, Incoming
from schemas.identity import uuid7
from workers.engine.claimed import Claimed
from workers.kit.memory import Child

PAGE_BYTES = 4096


def weight(children: Sequence[Child]) -> int:
    """How many rows of a batch they count as."""
    return sum(1 + len(each.data) // PAGE_BYTES for each in children)


def waits_s(children: Sequence[Child], now: datetime) -> set[int]:
    """In how many seconds children fall due; `now` is the time on the clock of Postgres."""
    return {int((each.due_at - now).total_seconds()) for each in children if each.due_at and each.due_at > now}


def incoming(claimed: Claimed, emitted: Sequence[Child], followers: Sequence[str]) -> list[Incoming]:
    """Their ids say in which run, step and place they were said: a second time they are the same events."""
    if not emitted and not followers:
        return []
    told = json.decode(claimed.attributes, type=Attributes)
    return [
        *(_emitted(claimed, told.traceparent, each) for each in emitted),
        *(_following(claimed, told, name) for name in followers),
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


def _following(claimed: Claimed, told: Attributes, name: str) -> Incoming:
    return Incoming(
        event_id=uuid7(),
        source=f"/events/{claimed.event_id}",
        id=f"{claimed.run}/after/{name}",
        type=claimed.type,
        partitionkey=claimed.key,
        due_at=None,
        attributes=replace(told, dueat=None),
        data=claimed.data,
        tenant=claimed.tenant,
        parent=claimed.event_id,
        reaction=name,
    )
