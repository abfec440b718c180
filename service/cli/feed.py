"""Feeding messages in and seeing each one to its end: a bounded number at once, none of them twice."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar
from uuid import UUID

import click
import httpx
import msgspec
from msgspec import Struct

from service.cli.api_client import (
    ENDED,
    EventView,
    Refused,
    decode_event,
    get_event,
    list_events,
    patiently,
    post_event,
)
from service.cli.corpus import Message, Split, subject_of

IN_FLIGHT_MAX = 32
STALL_S = 120.0
POLL_S = 0.5
# Between two walks over the events of a run, so that watching stays a small part of what the service does.
PAUSES_PER_WALK = 5
PAGE = 500
# With `since` the service need not look for this run among all that it has ever stored; its clocks may differ a little.
SINCE_SLACK = timedelta(minutes=1)
MAX_ID = (1 << 128) - 1
DEAD_SHOWN_MAX = 5
TAUGHT, ASKED = "message.labelled", "ticket.opened"

Item = TypeVar("Item")
Got = TypeVar("Got")
Watch = Callable[[int, int], None]


class Fed(Struct, frozen=True):
    """How a run ended: the count of each status, some that are dead, and each ticket in the plan's order."""

    source: str
    statuses: Counter[str]
    dead_ids: list[str]
    tickets: list[EventView]


class Feed:
    """One run under one `source`; `watch` hears how many events are sent and how many have ended."""

    def __init__(self, client: httpx.AsyncClient, source: str, watch: Watch, stall_s: float = STALL_S) -> None:
        self._client: Final = client
        self._source: Final = source
        self._watch: Final = watch
        self._stall_s: Final = stall_s
        self._deadline = asyncio.timeout(None)
        self._first_id = UUID(int=MAX_ID)
        self._sent = 0
        self._ended = 0

    async def run(self, plan: Split) -> Fed:
        """Examples first, tickets when all examples have ended. Raises when nothing has moved for `stall_s`."""
        try:
            async with self._deadline:
                self._moved()
                return await self._run(plan)
        except TimeoutError as error:
            raise click.ClickException(
                f"Nothing has moved for {self._stall_s:g} s: {self._sent:,} sent, {self._ended:,} ended. "
                f"Does a worker run? What is there is under the source {self._source}."
            ) from error

    async def _run(self, plan: Split) -> Fed:
        await at_most(IN_FLIGHT_MAX, [(index, TAUGHT, example(each)) for index, each in plan.taught], self._post)
        statuses = await self._all_ended(TAUGHT, len(plan.taught))
        tickets = [(index, ASKED, ticket(index, each)) for index, each in plan.asked]
        event_ids = await at_most(IN_FLIGHT_MAX, tickets, self._post)
        statuses += await self._all_ended(ASKED, len(plan.asked))
        views = await at_most(IN_FLIGHT_MAX, event_ids, self._view)
        return Fed(self._source, statuses, await self._dead_ids(), views)

    async def _post(self, event: tuple[int, str, dict[str, str]]) -> str:
        index, type_, data = event
        # The same id at each try: a 202 that got lost on its way does not make a second event.
        body = msgspec.json.encode({"type": type_, "source": self._source, "id": str(index), "data": data})
        try:
            accepted = await patiently(lambda: post_event(self._client, body))
        except Refused as error:
            raise click.ClickException(f"Message {index + 1} was refused. {error.message}") from error
        self._first_id = min(self._first_id, UUID(accepted.event_id))
        self._sent += 1
        self._moved()
        return accepted.event_id

    async def _all_ended(self, type_: str, expected: int) -> Counter[str]:
        """The statuses when the last of `expected` events has ended."""
        before, clock = self._ended, asyncio.get_running_loop().time
        while expected:
            began = clock()
            statuses = await self._walk(type_)
            ended = sum(statuses[status] for status in ENDED)
            if before + ended > self._ended:
                self._ended = before + ended
                self._moved()
            if ended >= expected:
                return statuses
            await asyncio.sleep(max(POLL_S, PAUSES_PER_WALK * (clock() - began)))
        return Counter()

    async def _walk(self, type_: str) -> Counter[str]:
        statuses: Counter[str] = Counter()
        since = accepted_at(self._first_id) - SINCE_SLACK
        query = {"source": self._source, "type": type_, "since": since.isoformat(), "limit": str(PAGE)}
        while True:
            page = await patiently(lambda: list_events(self._client, **query))
            statuses.update(item.status for item in page.items)
            if page.next is None:
                return statuses
            query["cursor"] = page.next

    async def _view(self, event_id: str) -> EventView:
        view = decode_event(await patiently(lambda: get_event(self._client, event_id)))
        self._moved()
        return view

    async def _dead_ids(self) -> list[str]:
        query = {"source": self._source, "status": "dead", "limit": str(DEAD_SHOWN_MAX)}
        page = await patiently(lambda: list_events(self._client, **query))
        return [item.event_id for item in page.items]

    def _moved(self) -> None:
        self._deadline.reschedule(asyncio.get_running_loop().time() + self._stall_s)
        self._watch(self._sent, self._ended)


def accepted_at(event_id: UUID) -> datetime:
    """The time that a UUIDv7 carries."""
    return datetime.fromtimestamp((event_id.int >> 80) / 1000, UTC)


def example(message: Message) -> dict[str, str]:
    return {"text": message.text, "label": message.label or ""}


def ticket(index: int, message: Message) -> dict[str, str]:
    return {"ticket_id": f"demo-{index + 1}", "subject": subject_of(message), "body": message.text}


async def at_most(limit: int, items: Sequence[Item], act: Callable[[Item], Awaitable[Got]]) -> list[Got]:
    """What `act` gives for each item, in their order, with `limit` of them in hand; the first error ends the rest."""
    got: dict[int, Got] = {}
    waiting = iter(enumerate(items))

    async def hand() -> None:
        for index, item in waiting:
            got[index] = await act(item)

    hands = [asyncio.create_task(hand()) for _ in range(min(limit, len(items)))]
    try:
        await asyncio.gather(*hands)
    finally:
        for each in hands:
            each.cancel()
        await asyncio.gather(*hands, return_exceptions=True)
    return [got[index] for index in range(len(items))]
