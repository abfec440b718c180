"""What there is to read."""

from typing import Annotated

from msgspec import Meta

from schemas import Event

DocumentId = Annotated[str, Meta(min_length=1, max_length=200)]


class DocumentAdded(Event, tag="document.added", frozen=True):
    """A text to be found by what it says.

    Under the same `document_id` of the same source, it takes the place of the one before.
    """

    document_id: DocumentId
    text: Annotated[str, Meta(min_length=1, max_length=500_000)]


class DocumentIngested(Event, tag="document.ingested", frozen=True):
    """It can be found: said by the pipeline that took it in."""

    document_id: DocumentId
    passages: int
