"""Settle: the one transaction that ends a claim. The outcome is matched here."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from msgspec import Struct, json
from pgvector import Vector
from pgvector.asyncpg import register_vector

from schemas.identity import uuid7
from schemas.outcome import Dead, Done, HandedBack, Later, Outcome
from service.commits import GroupCommit
from service.failpoints import hit
from service.resources import Connection, connect
from service.settings import Settings
from workers.clients.vectors import Document
from workers.engine.claimed import SQL, Claimed
from workers.engine.retry import attempt
from workers.kit.memory import Facts

Row = tuple[Any, ...]


class Ending(Struct, frozen=True):
    """A claim with its outcome, the steps that led there and what is to be written with it."""

    claimed: Claimed
    outcome: Outcome
    pipeline: str | None
    facts: Facts

    @property
    def documents(self) -> list[Document]:
        return self.facts.documents if isinstance(self.outcome, Done) else []


class Settler:
    """Group commits of endings; afterwards the next event of each mailbox that moved on is rung."""

    def __init__(
        self, settings: Settings, ring: Callable[[UUID], None], wake_at: Callable[[datetime], Awaitable[None]]
    ) -> None:
        self._ring: Final = ring
        self._wake_at: Final = wake_at
        self._settings: Final = settings
        self._commits: Final = GroupCommit[Ending, bool]("settle", self._connect, self._write)
        self.run: Final[Callable[[], Awaitable[None]]] = self._commits.run

    async def settle(self, ending: Ending, timeout_s: float) -> bool:
        """Whether the claim still held. Raises Unavailable while Postgres is away, BadRow where it refuses it."""
        held = await self._commits.put(ending, timeout_s)
        if held and isinstance(ending.outcome, Later):
            await self._wake_at(ending.outcome.due_at)
        return held

    async def _connect(self) -> Connection:
        connection = await connect(self._settings, "settle")
        await register_vector(connection)
        return connection

    async def _write(self, connection: Connection, batch: Sequence[Ending]) -> list[bool]:
        rows = zip(*map(_row, batch), strict=True)
        written = [_document(ending, each) for ending in batch for each in ending.documents]
        documents = zip(*written, strict=True) if written else ([],) * 6
        hit(self._settings, "settle_begin")
        kept = [
            (ending.claimed.event_id, each.step, each.at, each.entry.decode())
            for ending in batch
            for each in ending.facts.kept
        ]
        remembered = zip(*kept, strict=True) if kept else ([],) * 4
        held = await connection.fetch(SQL["settle"], *rows, *documents, *remembered)
        hit(self._settings, "settle_committed")
        moved = {(row["tenant"], row["key"]) for row in held if row["key"] is not None}
        if moved:
            for row in await connection.fetch(SQL["heads"], *zip(*moved, strict=True)):
                self._ring(row["event_id"])
        still = {row["event_id"] for row in held}
        return [ending.claimed.event_id in still for ending in batch]


def _row(ending: Ending) -> Row:
    """The arguments of the settle statement, in its order."""
    claimed = ending.claimed
    result = error = due_at = cause = reason = dead_id = None
    match ending.outcome:
        case Done():
            outcome, result = "succeeded", ending.outcome.result.decode()
        case Later():
            outcome = "failed" if ending.outcome.charged else "put_off"
            due_at, cause = ending.outcome.due_at, ending.outcome.cause.replace("\0", "�")
            error = ending.outcome.error.decode() if ending.outcome.error else None
        case Dead():
            outcome, reason, dead_id = "dead", ending.outcome.reason, uuid7()
            error = ending.outcome.error.decode()
        case HandedBack():
            outcome = "handed_back"
    steps = json.encode(ending.facts.steps).decode()
    number = attempt(claimed, ending.facts) if outcome == "failed" else claimed.attempt
    end = (outcome, result, error, due_at, cause, reason, dead_id, ending.pipeline)
    who = (claimed.run, number, claimed.worker, claimed.claimed_at, steps)
    return (claimed.event_id, claimed.claim, *end, *who)


def _document(ending: Ending, document: Document) -> Row:
    return (
        ending.claimed.event_id,
        document.collection,
        document.id,
        document.text,
        Vector(document.embedding),
        json.encode(document.metadata).decode(),
    )
