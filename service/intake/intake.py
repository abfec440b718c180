"""The one door: HTTP and streams, the same decoding, the same commit, the same notifier."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

from msgspec import Struct
from msgspec.structs import replace
from redis.asyncio import Redis

import sql
from schemas.catalog import Catalog
from schemas.envelope import Incoming, read
from schemas.text import BadEvent
from service.core.group_commit import BadRow
from service.core.metrics import Meters
from service.core.servers import POSTGRES_ERRORS, REDIS_ERRORS, connect
from service.core.settings import Settings
from service.core.streams import names_of
from service.core.supervise import supervised
from service.intake.notifier import Notifier
from service.intake.store import Store, Stored

DRAIN_TIMEOUT_S: Final = 5.0
KEYED_EVERY_S: Final = 2.0
READ_AT_ONCE: Final = 32_768  # bytes of a batch, before others get a turn
_SQL: Final = sql.queries("intake")


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
        self, catalog: Catalog, store: Store, notifier: Notifier, body_max: int, keyed: Callable[[], Collection[str]]
    ) -> None:
        self.catalog: Final = catalog
        self._store: Final = store
        self.commits: Final = store.health
        self.notifier: Final = notifier
        self._body_max: Final = body_max
        self._keyed: Final = keyed

    async def take(
        self,
        body: bytes,
        *,
        tenant: str,
        source: str,
        default_id: str | None = None,
        key: str | None = None,
        by: str | None = None,
        quota_key: str | None = None,
    ) -> Accepted:
        """Accept one event. `key` (`Idempotency-Key`) is the `id` where the body has none, and must not contradict one.
        `by` goes on record as who sent it; `quota_key` is the prefix of the key that counts it among its open events.

        Raises BadEvent, Conflict, OverLimit where the tenant's share of the queue is full, or Unavailable while
        Postgres is away.
        """
        incoming = self._read(body, tenant, source, by, quota_key, default_id, key)
        try:
            stored: Stored | Exception = await self._store.accept(incoming)
        except BadRow as error:
            stored = error
        outcome = self._outcome(incoming, stored)
        if isinstance(outcome, Accepted):
            return outcome
        raise outcome

    async def read_all(
        self,
        bodies: Sequence[bytes],
        *,
        tenant: str,
        source: str,
        by: str | None = None,
        quota_key: str | None = None,
    ) -> list[Incoming | BadEvent]:
        """What each is; nothing is stored."""
        events: list[Incoming | BadEvent] = []
        size = 0
        for body in bodies:
            try:
                events.append(self._read(body, tenant, source, by, quota_key))
            except BadEvent as error:
                events.append(error)
            size += len(body)
            if size > READ_AT_ONCE:
                size = 0
                await asyncio.sleep(0)
        return events

    async def take_all(self, batch: Sequence[Incoming | BadEvent]) -> list[Accepted | Exception]:
        """Accept what is an event, in this order: what `take` would have answered or raised for each."""
        stored = iter(await self._store.accept_all([item for item in batch if isinstance(item, Incoming)]))
        return [self._outcome(item, next(stored)) if isinstance(item, Incoming) else item for item in batch]

    def _read(
        self,
        body: bytes,
        tenant: str,
        source: str,
        by: str | None,
        quota_key: str | None,
        default_id: str | None = None,
        key: str | None = None,
    ) -> Incoming:
        if len(body) > self._body_max:
            raise BadEvent(413, f"larger than {self._body_max} bytes (set by CALLBOARD_BODY_MAX)", reason="too_large")
        named = key or default_id
        incoming = read(body, self.catalog, tenant=tenant, source=source, default_id=named, accepted_by=by)
        if key and incoming.id != key:
            raise BadEvent(400, "`id` and the header Idempotency-Key differ: send one of them, or the same", "$.id")
        if incoming.partitionkey is None and incoming.type in self._keyed():
            raise BadEvent(422, f"what runs for {incoming.type} keeps state by key: name the actor", "$.partitionkey")
        return replace(incoming, quota_key=quota_key) if quota_key else incoming

    def _outcome(self, incoming: Incoming, stored: Stored | Exception) -> Accepted | Exception:
        match stored:
            case BadRow():
                return BadEvent(422, f"can't be stored: {stored}")
            case Exception():
                return stored
            case Stored(conflict=True):
                return Conflict(incoming, stored)
        if stored.due:
            self.notifier.notify(stored.event_id)
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
    """The door with its tasks, the commits and the notifier among them; at the end what was taken is committed, and the
    workers are notified of it."""
    store, notifier, keyed = Store(settings, catalog, meters), Notifier(redis, names_of(settings)), Keyed(settings)
    async with supervised({"store": store.run, "notifier": notifier.run, "keyed": keyed.run}):
        yield Intake(catalog, store, notifier, settings.body_max, lambda: keyed.types)
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                await store.drained()
                await notifier.drained()
        except REDIS_ERRORS:
            return  # the sweeper notifies workers of what is left
