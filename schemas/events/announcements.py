"""What is to be announced."""

from typing import Annotated

from msgspec import Meta

from schemas import Event

Fact = Annotated[str, Meta(min_length=1, max_length=1_000)]


class AnnouncementRequested(Event, tag="announcement.requested", frozen=True):
    """Somebody wants a text for `audience` that says these facts and nothing else."""

    audience: Annotated[str, Meta(min_length=1, max_length=200)]
    facts: Annotated[list[Fact], Meta(min_length=1, max_length=50)]
