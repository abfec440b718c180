"""Store: an event is in Postgres before anyone is told that it was accepted."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final
from uuid import UUID

import asyncpg
from msgspec import Struct, json

import sql
from schemas.catalog import Catalog
from schemas.envelope import Attributes, Incoming
from service.core.failpoints import hit
from service.core.group_commit import GroupCommit
from service.core.metrics import Meters
from service.core.servers import Connection, connect
from service.core.settings import Settings

ACCEPT_TIMEOUT_S: Final = 10.0
WRITERS: Final = 2
_SQL: Final = sql.queries("store")

Identity = tuple[str, str, str]


class Stored(Struct, frozen=True):
    """What became of an incoming event. `conflict`: another event has this (tenant, source, id)."""

    event_id: UUID
    status: str
    duplicate: bool = False
    conflict: bool = False
    due: bool = True


class Store:
    """Group commits of incoming events, on connections held for it."""

    def __init__(self, settings: Settings, catalog: Catalog, meters: Meters | None = None, via: str = "http") -> None:
        self._catalog: Final = catalog
        self._settings: Final = settings
        self._meters: Final = meters or Meters()
        self._via: Final = via
        self._commits: Final = GroupCommit[Incoming, Stored](
            "store",
            lambda: connect(settings, "store"),
            self._write,
            meters=self._meters,
            warm=True,
            caller_of=lambda incoming: incoming.tenant,
        )
        self.health: Final = self._commits.health

    async def accept(self, incoming: Incoming) -> Stored:
        """Commit the event.

        Raises Unavailable while Postgres is away, BadRow where it refuses the event, OverLimit where as many of the
        tenant's wait as may.
        """
        return await self._commits.put(incoming, ACCEPT_TIMEOUT_S)

    async def accept_all(self, batch: Sequence[Incoming]) -> list[Stored | Exception]:
        """The same for many, whose places are in their order; an error stands for itself."""
        return await self._commits.put_all(batch, ACCEPT_TIMEOUT_S)

    async def run(self, writers: int = WRITERS) -> None:
        await self._commits.run(writers)

    async def drained(self) -> None:
        await self._commits.drained()

    async def _write(self, connection: Connection, batch: Sequence[Incoming]) -> list[Stored]:
        hit(self._settings, "accept_begin")
        fresh = await self._insert(connection, batch)
        hit(self._settings, "accept_committed")
        for incoming in batch:
            if incoming.event_id in fresh:
                self._meters.add("callboard_events_accepted_total", (incoming.type, self._via))
        others = [incoming for incoming in batch if incoming.event_id not in fresh]
        there = await existing(connection, others) if others else {}
        return [self._stored(incoming, fresh, there) for incoming in batch]

    async def _insert(self, connection: Connection, batch: Sequence[Incoming]) -> dict[UUID, bool]:
        """Batches with keys draw their places under the locks of their mailboxes; others need no transaction."""
        if all(incoming.partitionkey is None for incoming in batch):
            return await accept(connection, batch)
        async with connection.transaction():
            await lock_mailboxes(connection, batch)
            return await accept(connection, batch)

    def _stored(
        self, incoming: Incoming, fresh: Mapping[UUID, bool], there: Mapping[Identity, asyncpg.Record]
    ) -> Stored:
        if (due := fresh.get(incoming.event_id)) is not None:
            return Stored(incoming.event_id, "queued" if due else "scheduled", due=due)
        row = there[identity(incoming)]
        if row["event_id"] == incoming.event_id:
            return Stored(incoming.event_id, row["status"], due=row["status"] == "queued")
        return Stored(row["event_id"], row["status"], duplicate=True, conflict=not self._same(incoming, row), due=False)

    def _same(self, incoming: Incoming, row: asyncpg.Record) -> bool:
        """Same `type`, `subject`, `partitionkey` and equal decoded `data`."""
        subject = json.decode(row["attributes"], type=Attributes).subject
        if (incoming.type, incoming.partitionkey, incoming.attributes.subject) != (
            row["type"],
            row["partitionkey"],
            subject,
        ):
            return False
        kind = self._catalog[incoming.type]
        with suppress(ValueError):  # what was stored under an older schema may not decode any more
            return kind.decode(incoming.data) == kind.decode(row["data"].encode())
        return False


def identity(incoming: Incoming) -> Identity:
    return (incoming.tenant, incoming.source, incoming.id)


async def existing(connection: Connection, batch: Sequence[Incoming]) -> dict[Identity, asyncpg.Record]:
    """The rows that have the identities of these events."""
    identities = list({identity(incoming) for incoming in batch})
    rows = await connection.fetch(_SQL["existing"], *zip(*identities, strict=True))
    return {(row["tenant"], row["source"], row["id"]): row for row in rows}


async def lock_mailboxes(connection: Connection, batch: Sequence[Incoming]) -> None:
    """Before anything else in the transaction that accepts `batch`: their places are drawn in the order of commits."""
    keyed = [incoming for incoming in batch if incoming.partitionkey is not None]
    if keyed:
        await connection.execute(
            _SQL["lock_mailboxes"],
            [incoming.tenant for incoming in keyed],
            [incoming.partitionkey for incoming in keyed],
        )


async def accept(connection: Connection, batch: Sequence[Incoming]) -> dict[UUID, bool]:
    """Those that were not there yet, and whether Postgres takes them for due: this machine's clock may be wrong.

    Where one has a key, its mailbox is locked.
    """
    rows = await connection.fetch(_SQL["accept"], *sql.columns([_row(incoming) for incoming in batch]))
    return {row[0]: row[1] for row in rows}


def _row(incoming: Incoming) -> Sequence[object]:
    """The arguments of the accept statement, in its order."""
    return (
        incoming.event_id,
        incoming.tenant,
        incoming.source,
        incoming.id,
        incoming.type,
        incoming.partitionkey,
        json.encode(incoming.attributes).decode(),
        incoming.data.decode(),
        incoming.due_at,
        incoming.parent,
        incoming.follow_up,
        incoming.accepted_by,
        incoming.quota_key,
    )
