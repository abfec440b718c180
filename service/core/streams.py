"""The streams in Redis: names, groups, entries. Redis is the doorbell; nothing here is the record of anything."""

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from service.core.settings import Settings

GROUP: Final = "workers"
INGEST_GROUP: Final = "intake"
PIECE: Final = 8  # entries that are read at a time where their bytes are bounded
NOTIFY: Final = Path(__file__).with_name("stream_notify.lua").read_text(encoding="utf-8")
BOUNDED: Final = Path(__file__).with_name("stream_read.lua").read_text(encoding="utf-8")
SCAN: Final = Path(__file__).with_name("stream_scan.lua").read_text(encoding="utf-8")

log = logging.getLogger("callboard.redis")

Entry = tuple[str, dict[bytes, bytes]]


class Names(Struct, frozen=True):
    """Everything of ours in Redis. What another Callboard on the same Redis has bears another prefix.

    Streams: ingest, front, work, dead. Texts: epoch, owner. Channels: cancel (the ids of cancelled events), news (of
    those whose log has grown), status_changed. Beginnings of names: live (an event's log), limit and permits (of a
    model), quota (of a key), arq (all that arq keeps). A sorted set: apis (which are alive).
    """

    ingest: str
    front: str
    work: str
    dead: str
    epoch: str
    owner: str
    cancel: str
    news: str
    status_changed: str
    live: str
    limit: str
    permits: str
    quota: str
    apis: str
    arq: str


def names_of(settings: Settings) -> Names:
    return Names(*(f"{settings.redis_prefix}{name}" for name in Names.__struct_fields__))


async def notify(redis: Redis, ids: Sequence[UUID], stream: str) -> None:
    """Put event ids on a stream, one entry each, in one command. A second entry of the same event is harmless."""
    if not ids:
        return
    await redis.register_script(NOTIFY)(keys=[stream], args=[event_id.bytes for event_id in ids])


async def may_notify(redis: Redis, names: Names) -> None:
    """Raises what an entry on the work stream would raise, but writes none: 0-0 is no id that an entry can have. Redis
    looks at the user's rights, at its memory and at its role before it looks at that."""
    try:
        await redis.xadd(names.work, {"id": b""}, id="0-0")
    except ResponseError as error:
        if "0-0" not in str(error):
            raise


async def ensure_group(redis: Redis, stream: str, group: str) -> None:
    """Create the group from the stream's beginning, never from `$`: what is there already must be read."""
    try:
        await redis.xgroup_create(stream, group, id="0", mkstream=True)
    except ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):
            raise


async def read(
    redis: Redis,
    names: Sequence[str],
    group: str,
    consumer: str,
    count: int,
    *,
    after: str = ">",
    block_ms: int | None = None,
) -> list[tuple[str, list[Entry]]]:
    """Up to `count` entries of each stream: new ones (`>`), or this consumer's own pending ones (`0`).

    Waits up to `block_ms` where none has any. Makes the groups where they are gone.
    """
    try:
        reply = await redis.xreadgroup(group, consumer, dict.fromkeys(names, after), count=count, block=block_ms)
    except ResponseError as error:
        if not str(error).startswith("NOGROUP"):
            raise
        for name in names:
            await ensure_group(redis, name, group)
        return []
    return [(_text(name), [(_text(entry_id), fields) for entry_id, fields in entries]) for name, entries in reply]


async def read_bounded(
    redis: Redis, name: str, group: str, consumer: str, count: int, *, bytes_max: int, entry_max: int, after: str = ">"
) -> list[Entry]:
    """As `read`, of one stream and without waiting: entries up to `bytes_max` bytes, each cut off behind `entry_max`.

    What a producer put there is never held whole where it is larger: the field `event` then has one byte too many. At
    most PIECE entries, or one where it is larger than that, come on top of `bytes_max`.
    """
    piece = max(1, min(PIECE, bytes_max // (entry_max + 1)))
    arguments = (group, consumer, after, count, bytes_max, entry_max, piece)
    try:
        reply: Any = await redis.register_script(BOUNDED)(keys=[name], args=arguments)
    except ResponseError as error:
        if "NOGROUP" not in str(error):
            raise
        await ensure_group(redis, name, group)
        return []
    return [(_text(entry_id), dict(zip(fields[::2], fields[1::2], strict=True))) for entry_id, *fields in reply]


async def scan(redis: Redis, name: str, field_max: int) -> AsyncIterator[list[Entry]]:
    """All entries of a stream, PIECE at a time and for no group; each field is cut off behind `field_max` bytes."""
    after = "-"
    with raises_misplaced(name):
        while reply := await redis.register_script(SCAN)(keys=[name], args=[after, PIECE, field_max]):
            yield [(_text(entry_id), dict(zip(fields[::2], fields[1::2], strict=True))) for entry_id, *fields in reply]
            after = f"({_text(reply[-1][0])}"


async def finish(redis: Redis, stream: str, group: str, entries: Sequence[str]) -> None:
    """Acknowledge and delete: an acknowledged entry would stay in memory for ever."""
    if not entries:
        return
    async with redis.pipeline(transaction=True) as pipe:
        pipe.xack(stream, group, *entries)
        pipe.xdel(stream, *entries)
        await pipe.execute()


async def take_over(redis: Redis, stream: str, group: str, consumer: str, idle_ms: int, count: int) -> list[Entry]:
    """Entries that another consumer has read but not finished for `idle_ms`; empty ones where the entry is deleted."""
    try:
        # justid: else a Redis before 7 gives of a deleted entry not even its id, and it would pend for ever
        taken = await redis.xautoclaim(stream, group, consumer, idle_ms, count=count, justid=True)
    except ResponseError as error:
        if not str(error).startswith("NOGROUP"):
            raise
        return []  # the next read makes the group
    if not taken:
        return []
    entries = await read(redis, [stream], group, consumer, count, after="0")
    return [entry for _, entries in entries for entry in entries]


def event_id(fields: dict[bytes, bytes]) -> UUID | None:
    """The event that an entry notifies of; None where it is no entry of ours."""
    raw = fields.get(b"id", b"")
    return UUID(bytes=raw) if len(raw) == 16 else None


async def mend(redis: Redis, names: Names) -> list[str]:
    """Delete doorbells that are no streams, so that they are made anew: nothing depends on them. Which they were.

    The streams of producers and of readers (ingest, dead) are not ours to delete.
    """
    broken = [name for name in (names.front, names.work) if await redis.type(name) not in (b"stream", b"none")]
    for name in broken:
        log.warning("%s in Redis is no stream: it is deleted and made anew", name)
        await redis.delete(name)
    return broken


class Misplaced(RedisError):
    """A key of producers or readers is something else than the stream it has to be, and not ours to delete."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} in Redis is no stream: rename or delete it, for what belongs there is held up")


async def check(redis: Redis, names: Names) -> None:
    """Raises Misplaced where a stream of producers or readers is something else."""
    for name in (names.ingest, names.dead):
        if await redis.type(name) not in (b"stream", b"none"):
            raise Misplaced(name)


async def epoch(redis: Redis, names: Names) -> str:
    """Which memory this Redis has: a fresh one gets a new mark."""
    return await written(redis, names.epoch, str(uuid4()))


async def written(redis: Redis, name: str, text: str) -> str:
    """What stands under `name`, or else `text`, written there. A key that is no text is replaced: marks are our own."""
    await redis.set(name, text, nx=True)
    if await redis.type(name) not in (b"string", b"none"):
        log.warning("%s in Redis is no text: it is deleted and written anew", name)
        await redis.delete(name)
        await redis.set(name, text, nx=True)
    return _text(await redis.get(name) or b"")


def wrong_type(error: BaseException) -> bool:
    """Whether a key is there, and is not what it should be."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)  # in a script other words stand before it


@contextmanager
def raises_misplaced(name: str) -> Iterator[None]:
    """Around commands on a stream of producers or readers. Raises Misplaced where it is something else."""
    try:
        yield
    except ResponseError as error:
        if wrong_type(error):
            raise Misplaced(name) from error
        raise


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
