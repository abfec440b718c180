"""The base of every event."""

from msgspec import Struct

TAG_FIELD = "$type"


class Event(Struct, frozen=True, forbid_unknown_fields=True, tag_field=TAG_FIELD):
    """What was said. A subclass names its CloudEvents `type` by `tag` and repeats `frozen=True` (for mypy):

    `class TicketOpened(Event, tag="ticket.opened", frozen=True)`.
    """
