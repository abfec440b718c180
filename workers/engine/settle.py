"""Settle: the one transaction that ends a claim. The outcome is matched here."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final
from uuid import UUID

import asyncpg
from msgspec import Struct, json
from pgvector import Vector
from pgvector.asyncpg import register_vector

import sql
from schemas.envelope import Incoming
from schemas.identity import uuid7
from schemas.outcome import Dead, Done, HandedBack, Later, Outcome
from schemas.text import storable
from service.core.failpoints import hit
from service.core.group_commit import GroupCommit
from service.core.log import Seldom
from service.core.metrics import Meters
from service.core.postgres_errors import NoVectors
from service.core.servers import Connection, connect
from service.core.settings import Settings
from service.documents.vectors import Document
from service.intake.store import lock_mailboxes
from workers.engine.children import accept_children, incoming, is_displaced, waits_s, weight
from workers.engine.claim import Claimed
from workers.engine.retry import attempt
from workers.engine.run_metrics import settled
from workers.kit.memory import Facts, Kept

Row = tuple[Any, ...]
QUIET_S: Final = 1.0
SQL: Final = sql.queries("settle")


class Ending(Struct, frozen=True):
    """A claim with its outcome, the steps that led there and what is to be written with it."""

    claimed: Claimed
    outcome: Outcome
    pipeline: str | None
    facts: Facts
    follow_ups: Sequence[str] = ()

    @property
    def succeeded(self) -> bool:
        return isinstance(self.outcome, Done)

    @property
    def weight(self) -> int:
        """How many rows of a batch it counts as."""
        return 1 + (weight(self.facts.children) + len(self.follow_ups) if self.succeeded else 0)

    def children(self) -> list[Incoming]:
        return incoming(self.claimed, self.facts.children, self.follow_ups) if self.succeeded else []


class Settler:
    """Group commits of endings; afterwards the next event of each mailbox that moved on is notified."""

    def __init__(
        self,
        settings: Settings,
        notify: Callable[[UUID], None],
        wake_in: Callable[[float], Awaitable[None]],
        meters: Meters | None = None,
    ) -> None:
        self._meters: Final = meters or Meters()
        self._notify: Final = notify
        self._wake_in: Final = wake_in
        self._settings: Final = settings
        self.written = 0  # endings, whatever became of them
        self.seldom: Final = Seldom(QUIET_S)
        self._commits: Final = GroupCommit[Ending, bool](
            "settle", self._connect, self._write, lambda ending: ending.weight, self._meters, warm=True
        )
        self.commits: Final = self._commits.health
        self.run: Final[Callable[[], Awaitable[None]]] = self._commits.run

    async def settle(self, ending: Ending, timeout_s: float) -> bool:
        """Whether the claim still held. Raises Unavailable while Postgres is away, BadRow where it refuses it."""
        held = await self._commits.put(ending, timeout_s)
        if held and isinstance(ending.outcome, Later):
            await self._wake_in(ending.outcome.wait_s)
        if held and ending.succeeded and ending.facts.children:
            due = waits_s(ending.facts.children, ending.facts.now())
            await asyncio.gather(*map(self._wake_in, due))
        return held

    async def _connect(self) -> Connection:
        async with AsyncExitStack() as undo:
            connection = await connect(self._settings, "settle")
            undo.callback(connection.terminate)
            await _know_vectors(connection)
            undo.pop_all()
            return connection

    async def _write(self, connection: Connection, batch: Sequence[Ending]) -> list[bool]:
        hit(self._settings, "settle_begin")
        children = {n: emitted for n, ending in enumerate(batch, 1) if (emitted := ending.children())}
        held, emitted, due = await _settled(connection, batch, children)
        hit(self._settings, "settle_committed")
        self.written += len(batch)
        still = {row["n"] for row in held}
        self._count([ending for n, ending in enumerate(batch, 1) if n in still], emitted)
        for child in emitted:
            if child.event_id in due:
                self._notify(child.event_id)
        moved = {(row["tenant"], row["partition_key"]) for row in held if row["partition_key"] is not None}
        if moved:
            for row in await connection.fetch(SQL["heads"], *zip(*moved, strict=True)):
                self._notify(row["event_id"])
        return [n in still for n in range(1, len(batch) + 1)]

    def _count(self, held: Sequence[Ending], emitted: Sequence[Incoming]) -> None:
        for ending in held:
            settled(self._meters, ending.claimed, ending.pipeline, ending.outcome, ending.facts)
        for child in emitted:
            self._meters.add("callboard_events_accepted_total", (child.type, "child"))
            if is_displaced(child):
                self._meters.add("callboard_child_conflicts_total", (child.type,))


async def _know_vectors(connection: Connection) -> None:
    """pgvector may be in any schema. Raises NoVectors where this role can't use it."""
    schema = await connection.fetchval(SQL["vector_schema"])
    if schema is None:
        raise NoVectors("the extension vector is not in this database, or its schema may not be used")
    try:
        await register_vector(connection, schema=schema)
    except ValueError as error:
        raise NoVectors(str(error)) from error


async def _settled(
    connection: Connection, batch: Sequence[Ending], children: Mapping[int, list[Incoming]]
) -> tuple[list[asyncpg.Record], list[Incoming], set[UUID]]:
    """Who still held their claims, the children that were not there yet, and which of those are due.

    With children it takes a transaction.
    """
    arguments = _arguments(batch)
    if not children:
        return await connection.fetch(SQL["settle"], *arguments), [], set()
    async with connection.transaction():
        await lock_mailboxes(connection, [child for emitted in children.values() for child in emitted])
        held = await connection.fetch(SQL["settle"], *arguments)
        emitted = [child for row in held for child in children.get(row["n"], ())]
        fresh, due = await accept_children(connection, emitted)
    return held, fresh, due


def _arguments(batch: Sequence[Ending]) -> list[Sequence[Any]]:
    """Of the settle statement, in its order."""
    numbered = list(enumerate(batch, 1))
    succeeded = [(n, ending.facts) for n, ending in numbered if ending.succeeded]
    documents = [_document(n, document) for n, facts in succeeded for document in facts.documents]
    states = [(n, name, bytes(value).decode()) for n, facts in succeeded for name, value in facts.new_states.items()]
    records = [
        (n, record.step, record.at, record.entry.decode(), record.took_state)
        for n, ending in numbered
        for record in _to_keep(ending)
    ]
    return [
        *sql.columns([_row(ending) for ending in batch]),
        *_columns(documents, 6),
        *_columns(records, 5),
        *_columns(states, 3),
        *sql.columns([_snooze(ending) for ending in batch]),
    ]


def _to_keep(ending: Ending) -> Sequence[Kept]:
    """Of a success what a replay must find, and what completed before: the one may depend on the other."""
    records = ending.facts.unstored
    if not ending.succeeded:
        return records
    for n in range(len(records), 0, -1):
        if records[n - 1].lasting:
            return records[:n]
    return ()


def _columns(rows: Sequence[Row], width: int) -> Sequence[Sequence[Any]]:
    return list(zip(*rows, strict=True)) if rows else [[]] * width


def _row(ending: Ending) -> Row:
    """The arguments of the settle statement, in its order."""
    claimed = ending.claimed
    result = error = wait_s = cause = reason = dead_id = None
    match ending.outcome:
        case Done():
            outcome, result = "succeeded", ending.outcome.result.decode()
        case Later():
            outcome = "failed" if ending.outcome.charged else "snoozed"
            wait_s, cause = ending.outcome.wait_s, storable(ending.outcome.cause)
            error = ending.outcome.error.decode() if ending.outcome.error else None
        case Dead():
            outcome, reason, dead_id = "dead", ending.outcome.reason, uuid7()
            error = ending.outcome.error.decode()
        case HandedBack():
            outcome = "handed_back"
    steps = json.encode(ending.facts.steps).decode()
    number = attempt(claimed, ending.facts) if outcome == "failed" else claimed.attempt
    end = (outcome, result, error, wait_s, cause, reason, dead_id, ending.pipeline)
    who = (claimed.run, number, claimed.worker, claimed.claimed_at, steps)
    return (claimed.event_id, claimed.claim, *end, *who)


def _snooze(ending: Ending) -> Row:
    """Of a snooze its kind, and by what it is blocked: the last arguments of the settle statement."""
    match ending.outcome:
        case Later(charged=False, snooze=kind, blocked_by=names):
            return (kind, " ".join(names) or None)
    return (None, None)


def _document(n: int, document: Document) -> Row:
    return (
        n,
        document.collection,
        document.id,
        document.text,
        None if document.embedding is None else Vector(document.embedding),
        json.encode(document.metadata).decode(),
    )
