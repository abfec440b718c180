"""Stream in: what producers put on `callboard:ingest` goes through the same door as HTTP, in the stream's order."""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Final
from uuid import UUID

import msgspec
from msgspec import Struct, json
from redis.asyncio import Redis
from redis.exceptions import ResponseError

import sql
from schemas.catalog import Catalog
from schemas.envelope import SOURCE, TENANT
from schemas.identity import uuid7
from schemas.text import BadEvent, storable
from service import stream
from service.commits import BadRow
from service.errors import kind_of
from service.intake import Conflict, Intake
from service.meters import Meters
from service.outbox import Outbox
from service.redis_owner import RedisOwner
from service.resources import POSTGRES_ERRORS, Connection, connect
from service.settings import Settings
from service.store import Store
from service.stream import Entry, names_of
from service.supervise import supervised

COUNT: Final = 500  # one group commit
BLOCK_MS: Final = 4000
DUTY: Final = timedelta(seconds=15)
RENEW_S: Final = 5.0
STAND_BY_S: Final = 2.0
LEAVE_TIMEOUT_S: Final = 1.0
CONSUMER: Final = "intake"
_SQL: Final = {**sql.queries("store"), **sql.queries("lease")}

log = logging.getLogger("callboard.inbound")


class _Typed(Struct, frozen=True):
    type: str


class Inbound:
    """One process at a time takes the stream in; the others stand by."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        redis: Redis,
        holder: Callable[[], UUID],
        owner: RedisOwner,
        keyed: Collection[str] = (),
        meters: Meters | None = None,
    ) -> None:
        self._settings: Final = settings
        self._redis: Final = redis
        self._holder: Final = holder
        self._store: Final = Store(settings, catalog, meters, via="stream")
        self._owner: Final = owner
        self._name: Final = names_of(settings).ingest
        self._outbox: Final = Outbox(redis, names_of(settings))
        self._intake: Final = Intake(catalog, self._store, self._outbox, settings.body_max, lambda: keyed)

    async def run(self) -> None:
        """Take in until cancelled; an error ends it, and the supervisor starts it again, own pending entries first."""
        connection = await connect(self._settings, "inbound")
        try:
            # One writer: two would commit out of the stream's order.
            parts = {"ingest": lambda: self._store.run(writers=1), "ingest ring": self._outbox.run}
            async with supervised(parts):
                await self._take_in(connection)
        finally:
            await self._leave(connection)

    async def _leave(self, connection: Connection) -> None:
        """So that another takes over at once; what can't be said now runs out by itself."""
        with suppress(*POSTGRES_ERRORS):
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                await connection.execute(_SQL["release_duty"], "ingest", self._holder())
        with suppress(*POSTGRES_ERRORS):
            connection.terminate()

    async def _take_in(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        held_until, pending = 0.0, True
        while True:
            if loop.time() > held_until - DUTY.total_seconds() + RENEW_S:
                asked_at = loop.time()
                if await connection.fetchrow(_SQL["hold_duty"], "ingest", self._holder(), DUTY) is None:
                    pending = True
                    await asyncio.sleep(STAND_BY_S)
                    continue
                held_until = asked_at + DUTY.total_seconds()
            entries = await self._read(pending)
            pending = pending and bool(entries)
            if entries:
                await self._take(connection, entries)

    async def _read(self, pending: bool) -> list[Entry]:
        after, block_ms = ("0", None) if pending else (">", BLOCK_MS)
        try:
            found = await stream.read(
                self._redis, [self._name], stream.INGEST_GROUP, CONSUMER, COUNT, after=after, block_ms=block_ms
            )
        except ResponseError as error:
            if stream.wrong_type(error):
                raise stream.Misplaced(self._name) from error
            raise
        return [entry for _, entries in found for entry in entries]

    async def _take(self, connection: Connection, entries: Sequence[Entry]) -> None:
        """Store or bury each; only then are the entries done with. A bad one harms no other."""
        epoch = await self._owner.look(self._redis)  # entries of another's Redis are not stored
        outcomes = await asyncio.gather(*(self._one(epoch, entry) for entry in entries), return_exceptions=True)
        for (entry_id, fields), outcome in zip(entries, outcomes, strict=True):
            if isinstance(outcome, BadEvent | Conflict | BadRow):
                await self._bury(connection, f"ingest/{epoch}/{entry_id}", fields, outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
        await stream.finish(self._redis, self._name, stream.INGEST_GROUP, [entry_id for entry_id, _ in entries])

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
        said = (kind_of(error), storable(f"{path}: {error}"))
        await connection.execute(_SQL["dead_entry"], uuid7(), origin, _type_of(raw), reason, *said, text)


def _text(raw: bytes) -> str:
    """As Postgres can keep it."""
    return storable(raw.decode("utf-8", "replace"))


def _type_of(raw: bytes) -> str | None:
    """The `type` the entry claims, where that much can be read."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return json.decode(raw, type=_Typed).type.replace("\0", "")
    return None
