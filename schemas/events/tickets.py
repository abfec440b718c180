"""What customers say to support."""

from typing import Annotated

from msgspec import Meta

from schemas import Event


class TicketOpened(Event, tag="ticket.opened", frozen=True):
    """A customer wrote to support."""

    ticket_id: str
    subject: Annotated[str, Meta(max_length=500)]
    body: Annotated[str, Meta(max_length=50_000)]


class MessageLabelled(Event, tag="message.labelled", frozen=True):
    """Somebody said what a message is about: an example to learn from."""

    text: Annotated[str, Meta(min_length=1, max_length=50_000)]
    label: Annotated[str, Meta(min_length=1, max_length=200)]
