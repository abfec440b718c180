"""Where people are told at once: what the two examples that tell somebody need."""

from typing import Annotated

from msgspec import Meta

from workers.kit import Settings


class Pager(Settings, frozen=True):
    page_url: Annotated[
        str, Meta(description="Where `page_on_call` and `notify` post.", extra={"simulated": "/pages"})
    ] = ""
