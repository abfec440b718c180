"""Pipelines that draw ids, return sets, use a resource, run steps within steps, and touch the outside by all of it."""

from typing import Final

EVENTS: Final = '''
"""Orders."""

from schemas import Event


class Ordered(Event, tag="ordered", frozen=True):
    items: list[str]


class Called(Event, tag="called", frozen=True):
    """The same, of the free form."""

    items: list[str]
'''

NODES: Final = '''
"""What an order takes. Each file of lines is an outside that drops no repeat."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

from msgspec import Struct

from schemas.events.orders import Called, Ordered
from workers.kit import Run, Settings


class Sink(Settings, frozen=True):
    page_url: str


class Order(Struct, frozen=True):
    id: UUID


class Shipment(Struct, frozen=True):
    item: str
    order: UUID


class Mail(Struct, frozen=True):
    item: str
    order: UUID


class Note(Struct, frozen=True):
    order: UUID


class Labels(Struct, frozen=True):
    items: frozenset[str]


class Mailer(Struct, frozen=True):
    def send(self, run: Run, item: str, order: UUID) -> None:
        line(run, "mails", item, order)


def line(run: Run, name: str, item: str, order: UUID) -> None:
    with (Path(os.environ["CALLBOARD_DATA_DIR"]) / name).open("a") as file:
        file.write(f"{run.event_id} {item} {order}\\n")


@asynccontextmanager
async def open_mailer() -> AsyncIterator[Mailer]:
    yield Mailer()


async def draw(event: Ordered) -> Order:
    return Order(uuid4())


async def distinct(event: Ordered) -> set[str]:
    return set(event.items)


async def listed(items: set[str]) -> list[str]:
    return list(items)


async def ship(run: Run, sink: Sink, order: Order, item: str) -> Shipment:
    await run.web.post(sink.page_url, {"claim": run._deps.claim, "order": order.id, "item": item})
    return Shipment(item, order.id)


async def mail(run: Run, mailer: Mailer, order: Order, shipment: Shipment) -> Mail:
    mailer.send(run, shipment.item, order.id)
    return Mail(shipment.item, order.id)


async def note(run: Run, order: Order) -> Note:
    await run.outside()
    line(run, "notes", "note", order.id)
    return Note(order.id)


async def conclude(
    order: Order, items: list[str], shipments: list[Shipment], mails: list[Mail], note: Note
) -> dict[str, list[str]]:
    orders = [order, *shipments, *mails, note]
    named = {str(getattr(each, "order", None) or each.id) for each in orders}
    rows = zip(items, shipments, mails, strict=True)
    return {"orders": sorted(named), "mixed": [item for item, one, two in rows if not item == one.item == two.item]}


async def distinct_called(event: Called) -> set[str]:
    return set(event.items)


async def label(run: Run, sink: Sink, labels: Labels, order: Order) -> int:
    await run.web.post(sink.page_url, {"claim": run._deps.claim, "order": order.id, "item": labels.items})
    return len(labels.items)


async def send_off(run: Run, mailer: Mailer, order: Order, item: str) -> Mail:
    """Two steps within a step; what it draws for them is the same when it runs again."""
    parcel = run.uuid()
    await run.step(parcelled, parcel, item)
    shipment = await run.step(ship, order, item)
    return await run.step(mail, mailer, order, shipment)


async def parcelled(run: Run, sink: Sink, parcel: UUID, item: str) -> None:
    told = {"claim": run._deps.claim, "order": parcel, "item": f"parcel of {item}"}
    await run.web.post(sink.page_url, told)
'''

PIPELINES: Final = '''
"""Orders. Mails are sent one after the other: a death cuts one of them off at most."""

from schemas.events.orders import Called, Ordered
from workers.kit import Pipeline, Retry, Run, each, parallel, pipeline
from workers.nodes import orders as n

RETRY = Retry(attempts=3)

ordered = Pipeline(
    on=Ordered,
    flow=[parallel(n.draw, [n.distinct, n.listed]), each(n.ship), each(n.mail, at_once=1), n.note, n.conclude],
    resources=[n.open_mailer],
    retry=RETRY,
)


@pipeline(on=Called, resources=[n.open_mailer], retry=RETRY)
async def called(run: Run, event: Called) -> dict[str, list[str]]:
    order = n.Order(run.uuid())
    items = await run.step(n.distinct_called, event)
    await run.step(n.label, n.Labels(frozenset(items)), order)
    mailer = await run.resource(n.Mailer)
    mails = [await run.step(n.send_off, mailer, order, item) for item in items]
    note = await run.step(n.note, order)
    return {
        "orders": sorted({str(order.id), str(note.order), *(str(mail.order) for mail in mails)}),
        "mixed": [item for item, mail in zip(items, mails, strict=True) if item != mail.item],
    }
'''

FILES: Final = {
    "schemas/events/orders.py": EVENTS,
    "workers/nodes/orders.py": NODES,
    "workers/pipelines/orders.py": PIPELINES,
}
