"""The one door: HTTP and streams, the same decoding, the same commit, the same ring."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from typing import Final

from msgspec import Struct
from redis.asyncio import Redis

import sql
from schemas.catalog import Catalog
from schemas.envelope import Incoming, read
from schemas.text import BadEvent
from service.commits import BadRow
from service.meters import Meters
from service.outbox import Outbox
from service.resources import POSTGRES_ERRORS, REDIS_ERRORS, connect
from service.settings import Settings
from service.store import Store, Stored
from service.supervise import supervised

DRAIN_TIMEOUT_S: Final = 5.0
KEYED_EVERY_S: Final = 2.0
_SQL: Final = sql.queries("store")


class Conflict(Exception):
    """Another event with other content has this `source` and `id`."""

    def __init__(self, incoming: Incoming, stored: Stored) -> None:
        super().__init__(f'another event with source "{incoming.source}" and id "{incoming.id}" was accepted before')
        self.stored: Final = stored


class Accepted(Struct, frozen=True):
    event_id: str
    id: str
    source: str
    status: str
    duplicate: bool


class Intake:
    def __init__(
        self, catalog: Catalog, store: Store, outbox: Outbox, body_max: int, keyed: Callable[[], Collection[str]]
    ) -> None:
        self.catalog: Final = catalog
        self._store: Final = store
        self.outbox: Final = outbox
        self._body_max: Final = body_max
        self._keyed: Final = keyed

    async def take(
        self, body: bytes, *, tenant: str, source: str, default_id: str | None = None, key: str | None = None
    ) -> Accepted:
        """Accept one event. `key` (`Idempotency-Key`) is the `id` where the body has none, and must not contradict one.

        Raises BadEvent, Conflict, or Unavailable while Postgres is away.
        """
        if len(body) > self._body_max:
            raise BadEvent(413, f"larger than {self._body_max} bytes (CALLBOARD_BODY_MAX)", reason="too_large")
        incoming = read(body, self.catalog, tenant=tenant, source=source, default_id=key or default_id)
        if key and incoming.id != key:
            raise BadEvent(400, "`id` and the header Idempotency-Key differ: send one of them, or the same", "$.id")
        if incoming.partitionkey is None and incoming.type in self._keyed():
            raise BadEvent(422, f"what runs for {incoming.type} keeps state by key: name the actor", "$.partitionkey")
        try:
            stored = await self._store.accept(incoming)
        except BadRow as error:
            raise BadEvent(422, f"can't be stored: {error}") from error
        if stored.conflict:
            raise Conflict(incoming, stored)
        if stored.due:
            self.outbox.ring(stored.event_id)
        return Accepted(str(stored.event_id), incoming.id, incoming.source, stored.status, stored.duplicate)


class Keyed:
    """Which types need a `partitionkey`: their pipelines keep state by it, say the rows that workers write.

    Read again every few seconds, so that no event costs a query; what slips in, its worker refuses.
    """

    def __init__(self, settings: Settings) -> None:
        self.types: frozenset[str] = frozenset()
        self._settings: Final = settings

    async def run(self) -> None:
        """Refresh until cancelled; an error ends it, and the supervisor starts it again."""
        connection = await connect(self._settings, "keyed")
        try:
            while True:
                self.types = frozenset(row["type"] for row in await connection.fetch(_SQL["keyed"]))
                await asyncio.sleep(KEYED_EVERY_S)
        finally:
            with suppress(*POSTGRES_ERRORS):
                connection.terminate()


@asynccontextmanager
async def open_intake(settings: Settings, catalog: Catalog, redis: Redis, meters: Meters) -> AsyncIterator[Intake]:
    """The door with its tasks, the commits and the ring among them; at the end what was taken is committed and rung."""
    store, outbox, keyed = Store(settings, catalog, meters), Outbox(redis), Keyed(settings)
    async with supervised({"store": store.run, "outbox": outbox.run, "keyed": keyed.run}):
        yield Intake(catalog, store, outbox, settings.body_max, lambda: keyed.types)
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                await store.drained()
                await outbox.drained()
        except REDIS_ERRORS:
            return  # the sweeper rings what is left
