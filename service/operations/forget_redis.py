"""The request to forget and its answer; the target's traces in Redis: entries of streams, and live logs of events."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from msgspec import Meta, Struct, json
from redis.asyncio import Redis

from schemas.envelope import SOURCE, TENANT
from service.core import streams
from service.core.errors import Unavailable
from service.core.servers import REDIS_ERRORS
from service.core.streams import Names
from service.feed import live_log

Text = Annotated[str, Meta(min_length=1, pattern=r"^[^\x00]*$")]


class Target(Struct, frozen=True, forbid_unknown_fields=True):
    """Whose traces are deleted: those of one key, one subject or one source."""

    key: Text | None = None
    subject: Text | None = None
    source: Text | None = None
    dry_run: bool = False

    @property
    def by(self) -> list[str]:
        return [name for name in ("key", "subject", "source") if getattr(self, name) is not None]

    @property
    def attribute(self) -> str:
        """Its name in CloudEvents."""
        return "partitionkey" if self.key is not None else self.by[0]

    @property
    def text(self) -> str:
        text: str = getattr(self, self.by[0])
        return text


class Forgotten(Struct, frozen=True):
    """`found`: how many traces each table and stream had; `left`: how many each had when they were counted again.

    `more`: one request handles a bounded number of events; the next request goes on with the rest.
    """

    found: dict[str, int]
    left: dict[str, int]
    more: bool


class _Attributes(Struct):
    type: Any
    partitionkey: Any = None
    subject: Any = None
    source: Any = SOURCE  # where the event names none


def mentions(body: str, target: Target) -> bool:
    """Whether the body is an event with that attribute; where it is no event, whether it contains the text."""
    try:
        return bool(getattr(json.decode(body, type=_Attributes), target.attribute) == target.text)
    except (msgspec.DecodeError, RecursionError):
        quoted = json.encode(target.text).decode()
        return quoted in body or json.encode(quoted).decode()[1:-1] in body


class RedisTraces:
    """A target's traces in Redis, of one tenant. Its methods raise Unavailable while Redis is away."""

    def __init__(self, redis: Redis, names: Names, tenant: str, body_max: int) -> None:
        self._redis: Final = redis
        self._names: Final = names
        self._tenant: Final = tenant
        self._field_max: Final = body_max + 1

    async def streams(self, target: Target, ids: set[UUID], *, delete: bool) -> Counter[str]:
        """How many entries of the streams are of the target, or of these events."""
        counts, known = Counter[str](), set(map(str, ids))
        with _there():
            if self._tenant == TENANT:  # producers write the ingest stream for this tenant only
                async for entries in streams.scan(self._redis, self._names.ingest, self._field_max):
                    entry_ids = [entry_id for entry_id, fields in entries if mentions(_text(fields, b"event"), target)]
                    counts["ingest"] += len(entry_ids)
                    if delete:
                        await streams.finish(self._redis, self._names.ingest, streams.INGEST_GROUP, entry_ids)
            async for entries in streams.scan(self._redis, self._names.dead, self._field_max):
                entry_ids = [entry_id for entry_id, fields in entries if self._is_of(fields, target, known)]
                counts["dead"] += len(entry_ids)
                if entry_ids and delete:
                    await self._redis.xdel(self._names.dead, *entry_ids)
        return counts

    async def logs(self, ids: Sequence[UUID], *, delete: bool) -> int:
        """How many of these events have a live log."""
        if not ids:
            return 0
        names = [live_log.log_of(self._names, event_id) for event_id in ids]
        with _there():
            counted: int = await (self._redis.delete if delete else self._redis.exists)(*names)
        return counted

    async def stop(self, ids: Sequence[UUID]) -> None:
        """Tell the workers that run these events."""
        with _there():
            for event_id in ids:
                await self._redis.publish(self._names.cancel, event_id.bytes)

    def _is_of(self, fields: dict[bytes, bytes], target: Target, known: set[str]) -> bool:
        """An entry of the release before names no tenant: it is known by its event, or came by a stream."""
        event_id = _text(fields, b"event_id")
        tenant = _text(fields, b"tenant") or ("" if event_id else TENANT)
        return event_id in known or (tenant == self._tenant and mentions(_text(fields, b"event"), target))


def _text(fields: dict[bytes, bytes], name: bytes) -> str:
    return fields.get(name, b"").decode("utf-8", "replace")


@contextmanager
def _there() -> Iterator[None]:
    try:
        yield
    except REDIS_ERRORS as error:
        raise Unavailable("Redis does not answer, and what its streams hold is to be forgotten too") from error
