"""The streams in Redis: names, groups, entries. Redis is the doorbell; nothing here is the record of anything."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

from redis.asyncio import Redis
from redis.exceptions import ResponseError

INGEST: Final = "callboard:ingest"
WORK: Final = "callboard:work"
FRONT: Final = "callboard:front"
DEAD: Final = "callboard:dead"
EPOCH: Final = "callboard:epoch"
CANCEL: Final = "callboard:cancel"  # pub/sub: the ids of cancelled events
GROUP: Final = "workers"
INGEST_GROUP: Final = "intake"
PIECE: Final = 8  # entries that are read at a time where their bytes are bounded
BOUNDED: Final = Path(__file__).with_name("stream_read.lua").read_text(encoding="utf-8")

Entry = tuple[str, dict[bytes, bytes]]


async def ring(redis: Redis, ids: Sequence[UUID], stream: str = WORK) -> None:
    """Put event ids on a stream, one entry each, in one round trip. A second ring of the same event is harmless."""
    if not ids:
        return
    async with redis.pipeline(transaction=False) as pipe:
        for each in ids:
            pipe.xadd(stream, {"id": each.bytes})
        await pipe.execute()


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
    asked = (group, consumer, after, count, bytes_max, entry_max, piece)
    try:
        reply: Any = await redis.register_script(BOUNDED)(keys=[name], args=asked)
    except ResponseError as error:
        if "NOGROUP" not in str(error):
            raise
        await ensure_group(redis, name, group)
        return []
    return [(_text(entry_id), dict(zip(fields[::2], fields[1::2], strict=True))) for entry_id, *fields in reply]


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
    found = await read(redis, [stream], group, consumer, count, after="0")
    return [entry for _, entries in found for entry in entries]


def event_id(fields: dict[bytes, bytes]) -> UUID | None:
    """The event an entry rings for; None where it is no ring of ours."""
    raw = fields.get(b"id", b"")
    return UUID(bytes=raw) if len(raw) == 16 else None


async def epoch(redis: Redis) -> str:
    """Which memory this Redis has: a fresh one gets a new mark."""
    mark = await redis.get(EPOCH)
    if mark is None:
        await redis.set(EPOCH, str(uuid4()), nx=True)
        mark = await redis.get(EPOCH)
    return _text(mark or b"")


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
