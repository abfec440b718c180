"""What is said in conversations."""

from typing import Annotated

from msgspec import Meta

from schemas import Event


class MessageReceived(Event, tag="message.received", frozen=True):
    """A customer wrote. The event's `partitionkey` is the conversation's: one message after the other."""

    text: Annotated[str, Meta(min_length=1, max_length=4_000)]
