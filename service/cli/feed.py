"""Feeding messages in and seeing each one to its end: a bounded number at once, none of them twice."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Final, TypeVar

import click
import httpx
import msgspec
from msgspec import Struct

from schemas.outcome import ENDED
from service.cli.api_client import EventView, Refused, event_of, get_event, patiently, request
from service.cli.corpus import Message, Split, subject_of
from service.cli.send import post_event

IN_FLIGHT_MAX: Final = 32
STALL_S: Final = 120.0
POLL_S: Final = 0.5
# Between two walks over the events of a run, so that watching stays a small part of what the service does.
PAUSES_PER_WALK: Final = 5
PAGE: Final = 500
# With `since` the service need not look for this run among all that it has ever stored.
SINCE_SLACK: Final = timedelta(minutes=1)
DEAD_SHOWN_MAX: Final = 5
TAUGHT: Final = "message.labelled"
ASKED: Final = "ticket.opened"

Event = tuple[int, str, dict[str, str]]
"""Its place in the file, its type and its data."""
Item = TypeVar("Item")
Got = TypeVar("Got")


class Fed(Struct, frozen=True):
    """How a run ended: the count of each status, some that are dead, and each ticket in the plan's order."""

    statuses: Counter[str]
    dead_ids: list[str]
    tickets: list[EventView]


class Feed:
    """One run under one `source`; `watch` hears how many events are sent and how many have ended."""

    def __init__(self, client: httpx.AsyncClient, source: str, watch: Callable[[int, int], None]) -> None:
        self._client: Final = client
        self._watch: Final = watch
        self._source: Final = source
        self._deadline = asyncio.timeout(None)
        self._sent = 0
        self._ended = 0

    async def run(self, plan: Split) -> Fed:
        """Examples first, tickets when all examples have ended. Raises when nothing has moved for STALL_S."""
        try:
            async with self._deadline:
                self._moved()
                return await self._run(plan)
        except TimeoutError as error:
            raise click.ClickException(
                f"Nothing has moved for {STALL_S:g} s: {self._sent:,} sent, {self._ended:,} ended. "
                f"Does a worker run? What is there is under the source {self._source}."
            ) from error

    async def _run(self, plan: Split) -> Fed:
        examples = await self._fed([(index, TAUGHT, example(message)) for index, message in plan.examples])
        tickets = await self._fed([(index, ASKED, ticket(index, message)) for index, message in plan.questions])
        views = await at_most(IN_FLIGHT_MAX, list(tickets), self._view)
        ended = examples | tickets
        dead_ids = [event_id for event_id, status in ended.items() if status == "dead"]
        return Fed(Counter(ended.values()), dead_ids[:DEAD_SHOWN_MAX], views)

    async def _fed(self, events: Sequence[Event]) -> dict[str, str]:
        """Send these, all of one type, and wait for their ends: the status of each, in their order."""
        if not events:
            return {}
        event_ids = await at_most(IN_FLIGHT_MAX, events, self._post)
        since = (await self._view(min(event_ids))).accepted_at - SINCE_SLACK  # ids of events grow with time
        query = {"source": self._source, "type": events[0][1], "since": since.isoformat(), "limit": str(PAGE)}
        before, clock = self._ended, asyncio.get_running_loop().time
        while True:
            began = clock()
            statuses = await self._statuses(query)
            ended = sum(status in ENDED for status in statuses.values())
            if before + ended > self._ended:
                self._ended = before + ended
                self._moved()
            if ended >= len(events):
                return {event_id: statuses[event_id] for event_id in event_ids}
            await asyncio.sleep(max(POLL_S, PAUSES_PER_WALK * (clock() - began)))

    async def _statuses(self, query: dict[str, str]) -> dict[str, str]:
        statuses: dict[str, str] = {}
        page_query = dict(query)
        while True:
            page = await patiently(lambda: request(self._client, "GET", "/events", params=page_query))
            statuses |= {item["event_id"]: item["status"] for item in page["items"]}
            if page["next"] is None:
                return statuses
            page_query["cursor"] = page["next"]

    async def _post(self, event: Event) -> str:
        index, type_, data = event
        # The same id at each try: a 202 that got lost on its way does not make a second event.
        body = msgspec.json.encode({"type": type_, "source": self._source, "id": str(index), "data": data})
        try:
            accepted = await patiently(lambda: post_event(self._client, body))
        except Refused as error:
            raise click.ClickException(f"Message {index + 1} was refused. {error.message}") from error
        self._sent += 1
        self._moved()
        return str(accepted["event_id"])

    async def _view(self, event_id: str) -> EventView:
        event = event_of(await patiently(lambda: get_event(self._client, event_id)))
        self._moved()
        return event

    def _moved(self) -> None:
        self._deadline.reschedule(asyncio.get_running_loop().time() + STALL_S)
        self._watch(self._sent, self._ended)


def example(message: Message) -> dict[str, str]:
    return {"text": message.text, "label": message.label or ""}


def ticket(index: int, message: Message) -> dict[str, str]:
    return {"ticket_id": f"demo-{index + 1}", "subject": subject_of(message), "body": message.text}


async def at_most(limit: int, items: Sequence[Item], act: Callable[[Item], Awaitable[Got]]) -> list[Got]:
    """What `act` gives for each item, in their order, with `limit` of them in hand; nothing is begun after an error."""
    got: dict[int, Got] = {}
    waiting = iter(enumerate(items))

    async def work() -> None:
        for index, item in waiting:
            got[index] = await act(item)

    await asyncio.gather(*(work() for _ in range(min(limit, len(items)))))
    return [got[index] for index in range(len(items))]
