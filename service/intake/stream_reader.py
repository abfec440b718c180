"""Stream in: what producers put on `callboard:ingest` goes through the same door as HTTP, in the stream's order."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Final
from uuid import UUID

import msgspec
from msgspec import Struct, json
from redis.asyncio import Redis

import sql
from schemas.catalog import Catalog
from schemas.envelope import SOURCE, TENANT
from schemas.identity import uuid7
from schemas.text import BadEvent, storable
from service.core import streams
from service.core.errors import kind_of
from service.core.group_commit import BadRow
from service.core.metrics import Meters
from service.core.redis_owner import RedisOwner
from service.core.servers import POSTGRES_ERRORS, Connection, connect
from service.core.settings import Settings
from service.core.streams import Entry, names_of
from service.core.supervise import supervised
from service.intake.intake import Conflict, Intake
from service.intake.notifier import Notifier
from service.intake.store import Store

COUNT: Final = 500  # one group commit
BYTES_MAX: Final = 4 << 20  # of entries at a time: they are held several times, as text, decoded, as a row
BLOCK_MS: Final = 4000
DUTY: Final = timedelta(seconds=15)
RENEW_S: Final = 5.0
STAND_BY_S: Final = 1.0
LEAVE_TIMEOUT_S: Final = 1.0
CONSUMER: Final = "intake"
_SQL: Final = {**sql.queries("stream_reader"), **sql.queries("lease")}

log = logging.getLogger("callboard.stream_reader")


class _Typed(Struct, frozen=True):
    type: str


class StreamReader:
    """One process at a time takes the stream in; the others stand by.

    `holder` waits until this worker holds its lease, and returns its id. The duty is free when the lease is, and a
    worker that registers anew takes it anew.
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        redis: Redis,
        holder: Callable[[], Awaitable[UUID]],
        owner: RedisOwner,
        keyed: Collection[str] = (),
        meters: Meters | None = None,
    ) -> None:
        self._settings: Final = settings
        self._redis: Final = redis
        self._holder: Final = holder
        self._held_as: UUID | None = None
        self._renew_at = 0.0
        self._entry_max: Final = settings.body_max
        self._store: Final = Store(settings, catalog, meters, via="stream")
        self._owner: Final = owner
        self._name: Final = names_of(settings).ingest
        self._notifier: Final = Notifier(redis, names_of(settings))
        self._intake: Final = Intake(catalog, self._store, self._notifier, settings.body_max, lambda: keyed)

    async def run(self) -> None:
        """Take in until cancelled; an error ends it, and the supervisor starts it again, own pending entries first."""
        connection = await connect(self._settings, "stream reader")
        try:
            # One writer: two would commit out of the stream's order.
            parts = {"ingest": lambda: self._store.run(writers=1), "ingest notifier": self._notifier.run}
            async with supervised(parts):
                await self._take_in(connection)
        finally:
            await self._leave(connection)

    async def _leave(self, connection: Connection) -> None:
        """So that another takes over at once; what can't be said now runs out by itself."""
        held_as, self._held_as = self._held_as, None
        with suppress(*POSTGRES_ERRORS):
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                await connection.execute(_SQL["release_duty"], "ingest", held_as)
        with suppress(*POSTGRES_ERRORS):
            connection.terminate()

    async def _take_in(self, connection: Connection) -> None:
        """First what was read and not finished, one by one: among it may be what ended whoever read it in one piece."""
        pending = True
        while True:
            if not await self._on_duty(connection):
                pending = True
                await asyncio.sleep(STAND_BY_S)
                continue
            entries = await self._pending() if pending else await self._new()
            if entries and not await self._on_duty(connection):  # reading may have taken longer than the lease
                pending = True
                continue
            pending = pending and bool(entries)
            if entries:
                await self._take(connection, entries)

    async def _on_duty(self, connection: Connection) -> bool:
        """Whether it is this worker that takes in, asked of Postgres every RENEW_S and whenever its id has changed."""
        now, holder = asyncio.get_running_loop().time(), await self._holder()
        if holder == self._held_as and now < self._renew_at:
            return True
        held = await connection.fetchrow(_SQL["hold_duty"], "ingest", holder, DUTY) is not None
        same = self._held_as in (None, holder)
        self._held_as, self._renew_at = (holder, now + RENEW_S) if held else (None, 0.0)
        return held and same  # where it was lost in between, others may have read: pending entries come first again

    async def _pending(self) -> list[Entry]:
        return await self._read(1, "0")

    async def _new(self) -> list[Entry]:
        """What is there, up to a bound of bytes; where nothing is, the first entry that comes."""
        if entries := await self._read(COUNT, ">"):
            return entries
        with streams.raises_misplaced(self._name):
            by_stream = await streams.read(
                self._redis, [self._name], streams.INGEST_GROUP, CONSUMER, 1, after=">", block_ms=BLOCK_MS
            )
        return [(entry_id, self._cut(fields)) for _, entries in by_stream for entry_id, fields in entries]

    async def _read(self, count: int, after: str) -> list[Entry]:
        with streams.raises_misplaced(self._name):
            return await streams.read_bounded(
                self._redis,
                self._name,
                streams.INGEST_GROUP,
                CONSUMER,
                count,
                bytes_max=BYTES_MAX,
                entry_max=self._entry_max,
                after=after,
            )

    def _cut(self, fields: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """As entries are read that did not have to be waited for: what is too large is not held whole."""
        return {name: value[: self._entry_max + 1] for name, value in fields.items()}

    async def _take(self, connection: Connection, entries: Sequence[Entry]) -> None:
        """Store or bury each; only then are the entries done with. A bad one harms no other."""
        epoch = await self._owner.look(self._redis)  # entries of another's Redis are not stored
        outcomes = await asyncio.gather(*(self._one(epoch, entry) for entry in entries), return_exceptions=True)
        for (entry_id, fields), outcome in zip(entries, outcomes, strict=True):
            if isinstance(outcome, BadEvent | Conflict | BadRow):
                await self._bury(connection, f"ingest/{epoch}/{entry_id}", fields, outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
        await streams.finish(self._redis, self._name, streams.INGEST_GROUP, [entry_id for entry_id, _ in entries])

    async def _one(self, epoch: str, entry: Entry) -> None:
        entry_id, fields = entry
        if not fields:  # deleted by somebody while it was pending
            log.warning("the stream entry %s was deleted before it was read to its end", entry_id)
            return
        body = fields.get(b"event")
        if body is None:
            raise BadEvent(400, f"the entry has no field `event` (XADD {self._name} * event '<JSON>')")
        await self._intake.take(body, tenant=TENANT, source=SOURCE, default_id=f"{epoch}/{entry_id}")

    async def _bury(
        self, connection: Connection, origin: str, fields: dict[bytes, bytes], error: BadEvent | Conflict | BadRow
    ) -> None:
        path = error.path if isinstance(error, BadEvent) else "$.id" if isinstance(error, Conflict) else "$"
        reason = error.reason if isinstance(error, BadEvent) else "invalid"
        raw = fields.get(b"event") or json.encode({_text(name): _text(value) for name, value in fields.items()})
        text = _text(raw[: self._settings.body_max])
        log.warning("a stream entry is no event: %s, see the dead letters (%s)", reason, origin)  # a path tells of it
        error_parts = (kind_of(error), storable(f"{path}: {error}"))
        await connection.execute(_SQL["dead_entry"], uuid7(), origin, _type_of(raw), reason, *error_parts, text)


def _text(raw: bytes) -> str:
    """As Postgres can keep it."""
    return storable(raw.decode("utf-8", "replace"))


def _type_of(raw: bytes) -> str | None:
    """The `type` the entry claims, where that much can be read."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return json.decode(raw, type=_Typed).type.replace("\0", "")
    return None
