"""A claimed event: what the claim statement returns."""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, Final
from uuid import UUID

import asyncpg
from msgspec import Struct, json

import sql
from schemas.envelope import Attributes

SQL: Final = sql.queries("claim")


class Claimed(Struct, frozen=True):
    """The right to run this event now: `claim` is the fencing token that every write about it names."""

    event_id: UUID
    tenant: str
    partition_key: str | None
    source: str
    id: str
    type: str
    data: bytes
    attributes: str
    parent: UUID | None
    follow_up: str | None
    run: int
    attempts: int
    consecutive_losses: int
    snoozes: int
    doubtful_snoozes: int
    claim: int
    claimed_at: datetime
    worker: UUID

    @property
    def poison_suspect(self) -> bool:
        """Whether its last two claims, or more, were lost: it may be what ended those workers."""
        return self.consecutive_losses >= 2

    @property
    def attempt(self) -> int:
        """The number this try has, if it turns out to be an attempt."""
        return self.attempts + 1

    @property
    def about(self) -> Callable[[], dict[str, Any]]:
        """What each line has that is logged while it is run.

        Without the event's data: contexts hold this, and a timer that was cancelled may hold its context for minutes.
        """
        return partial(_about, self.event_id, self.run, self.attempt, self.attributes)


def _about(event_id: UUID, run: int, attempt: int, attributes: str) -> dict[str, Any]:
    fields = {"event": event_id, "run": run, "attempt": attempt}
    parent = json.decode(attributes, type=Attributes).traceparent
    return {**fields, "trace": parent.split("-")[1]} if parent else fields


def claimed(row: asyncpg.Record, worker: UUID) -> Claimed:
    return Claimed(
        event_id=row["event_id"],
        tenant=row["tenant"],
        partition_key=row["partition_key"],
        source=row["source"],
        id=row["id"],
        type=row["type"],
        data=row["data"].encode(),
        attributes=row["attributes"],
        parent=row["parent"],
        follow_up=row["follow_up"],
        run=row["run"],
        attempts=row["attempts"],
        consecutive_losses=row["consecutive_losses"],
        snoozes=row["snoozes"],
        doubtful_snoozes=row["doubtful_snoozes"],
        claim=row["claim"],
        claimed_at=row["claimed_at"],
        worker=worker,
    )
