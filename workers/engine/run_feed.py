"""The live feed of runs, on its way to whoever listens: numbered here, published in batches behind the runs.

No run waits for Redis. Events whose steps cost next to nothing say nothing: who follows them reads Postgres.
"""

import asyncio
import logging
import time
from collections import deque
from itertools import islice
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from service.core.servers import REDIS_ERRORS, redis_passes
from service.core.streams import Names, wrong_type
from service.feed import live_log
from workers.engine.claim import Claimed
from workers.kit.memory import Step
from workers.models.client import Call

FLUSH_S: Final = 0.04
PAUSE_S: Final = 1.0
SILENT_S: Final = 0.2  # what has ended by then is not worth a log
BATCH: Final = 1000
CHARS_MAX: Final = 8_000_000  # of tokens that wait for Redis
FEEDS_MAX: Final = 10_000
STATUS_CHANGED_MAX: Final = 10_000

log = logging.getLogger("callboard.live")


class Item(Struct, eq=False):
    """An entry of a feed. A token grows until it is taken; one that is `held` holds back the entries behind it."""

    n: int
    entry: live_log.Entry | None
    parts: list[str] = []
    held: bool = False

    @property
    def size(self) -> int:
        return sum(map(len, self.parts))

    def encoded(self) -> bytes:
        if isinstance(self.entry, live_log.Token):
            return msgspec.json.encode(replace(self.entry, text="".join(self.parts)))
        return msgspec.json.encode(self.entry)


class RunFeed:
    """The live feed of one claim."""

    def __init__(self, publisher: "FeedPublisher", claimed: Claimed) -> None:
        self.event_id: Final = claimed.event_id
        self.claim: Final = claimed.claim
        self.items: Final[deque[Item]] = deque()
        self._publisher: Final = publisher
        self._begun_at: Final = time.monotonic()
        self._n = 0
        self._publishes = False
        self._growing: dict[UUID, Item] = {}
        self._lengths: Final[dict[UUID, int]] = {}

    def step(self, step: Step) -> Step:
        """The step with its number."""
        item = self._append(live_log.Stepped(step.step, step.state, step.ms))
        return replace(step, n=item.n)

    def text_delta(self, step: str, call: Call, text: str) -> None:
        offset = self._lengths.get(call.call_id, 0)
        self._lengths[call.call_id] = offset + len(text)
        if not self._publisher.admits(len(text)):
            self._growing.pop(call.call_id, None)
            return
        item = self._growing.get(call.call_id)
        if item is None:
            token = live_log.Token(
                step, live_log.call_name(call.question_hash, call.ordinal), live_log.short_id(call.call_id), offset, ""
            )
            self._publishes = True
            item = self._growing[call.call_id] = self._append(token)
        item.parts.append(text)

    def ended(self, call: Call) -> None:
        """The call brings nothing more."""
        self._growing.pop(call.call_id, None)
        self._lengths.pop(call.call_id, None)

    def answered(self, step: str, call: Call) -> Item:
        """Held until it is `stored`."""
        self.ended(call)
        self._publishes = True
        name, short_id = live_log.call_name(call.question_hash, call.ordinal), live_log.short_id(call.call_id)
        return self._append(live_log.Answered(step, name, short_id, len(call.reply or "")), held=True)

    def stored(self, item: Item, *, is_stored: bool) -> None:
        """What no retry would get back becomes a gap: nobody needs it."""
        item.held = False
        item.entry = item.entry if is_stored else None
        self._publisher.more(self)

    def take(self, most: int) -> list[Item]:
        """What may be published now; from here on it does not grow."""
        items = []
        for item in islice(self.items, most):
            if item.held:
                break
            items.append(item)
        taken = {item.n for item in items}
        self._growing = {call: item for call, item in self._growing.items() if item.n not in taken}
        return items

    def _append(self, entry: live_log.Entry, *, held: bool = False) -> Item:
        self._n += 2
        item = Item(self._n, entry, held=held)
        self.items.append(item)
        self._publishes = self._publishes or time.monotonic() - self._begun_at > SILENT_S
        if self._publishes:
            self._publisher.more(self)
        return item


class FeedPublisher:
    """One per worker: the entries that are not published yet, in bounds. Where Redis is away tokens are given up."""

    def __init__(self, redis: Redis, names: Names) -> None:
        self._redis: Final = redis
        self._names: Final = names
        self._waiting: Final[dict[RunFeed, None]] = {}
        self._status_changed: Final[set[UUID]] = set()
        self._more: Final = asyncio.Event()
        self.chars = 0

    def feed(self, claimed: Claimed) -> RunFeed:
        return RunFeed(self, claimed)

    def admits(self, chars: int) -> bool:
        """Whether there is room for so much more of tokens; it is taken then."""
        if self.chars + chars > CHARS_MAX:
            return False
        self.chars += chars
        return True

    def more(self, feed: RunFeed) -> None:
        self._waiting[feed] = None
        if len(self._waiting) > FEEDS_MAX:
            oldest = next(iter(self._waiting))
            self._drop(oldest, len(oldest.items))
        self._more.set()

    def status_changed(self, event_id: UUID) -> None:
        """The event was settled: who listens is told of its new status."""
        if len(self._status_changed) < STATUS_CHANGED_MAX:
            self._status_changed.add(event_id)
            self._more.set()

    async def run(self) -> None:
        """Publish until cancelled: at once after a pause, then a batch every FLUSH_S."""
        while True:
            await self._more.wait()
            self._more.clear()
            try:
                await self._flush()
            except REDIS_ERRORS as error:
                log.warning("Redis is away, %d runs wait to be heard: %s", len(self._waiting), error)
                self._more.set()
                await asyncio.sleep(PAUSE_S)
            await asyncio.sleep(FLUSH_S)

    async def _flush(self) -> None:
        taken = self._take()
        status_changed = list(self._status_changed)
        async with self._redis.pipeline(transaction=False) as pipe:
            for feed, items in taken.items():
                name = live_log.log_of(self._names, feed.event_id)
                for item in items:
                    if item.entry is not None:
                        fields: dict[Any, Any] = {b"d": item.encoded()}
                        pipe.xadd(
                            name, fields, id=f"{feed.claim}-{item.n}", maxlen=live_log.LENGTH_MAX, approximate=True
                        )
                pipe.expire(name, live_log.KEPT_S)
            for channel, events in (
                (self._names.news, [feed.event_id for feed in taken]),
                (self._names.status_changed, status_changed),
            ):
                if events:
                    pipe.publish(channel, live_log.ids(events))
            if _check(await pipe.execute(raise_on_error=False)):
                await self._mend([live_log.log_of(self._names, feed.event_id) for feed in taken])
        self._status_changed.difference_update(status_changed)
        for feed, items in taken.items():
            self._drop(feed, len(items))

    async def _mend(self, logs: list[str]) -> None:
        for name in logs:
            if await self._redis.type(name) not in (b"stream", b"none"):
                log.warning("%s in Redis is no stream: it is deleted", name)
                await self._redis.delete(name)

    def _take(self) -> dict[RunFeed, list[Item]]:
        taken: dict[RunFeed, list[Item]] = {}
        left = BATCH
        for feed in self._waiting:
            items = feed.take(left)
            left -= len(items)
            if items:
                taken[feed] = items
            if not left:
                self._more.set()
                break
        return taken

    def _drop(self, feed: RunFeed, count: int) -> None:
        for _ in range(count):
            self.chars -= feed.items.popleft().size
        if not feed.items:
            self._waiting.pop(feed, None)


def _check(results: list[Any]) -> bool:
    """Whether a log is something else than a stream.

    Other entries that are refused are there already, from a try whose answer got lost, or are a lost claim's.
    """
    for result in results:
        if isinstance(result, ResponseError) and "equal or smaller" not in str(result):
            if redis_passes(result):
                raise result
            log.warning("Redis refuses what a run says: %s", result)
    return any(isinstance(result, ResponseError) and wrong_type(result) for result in results)
