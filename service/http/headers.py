"""The headers that every answer carries, whoever makes it."""

from typing import Final

from starlette.types import Message

DEFAULTS: Final = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
"""No browser takes an answer for something else than it says it is; nobody on the way keeps what one caller may see."""


def add_defaults(start: Message) -> None:
    """To an answer that begins, what it does not say itself."""
    headers: list[tuple[bytes, bytes]] = start["headers"]
    names = {name for name, _ in headers}
    headers.extend(header for header in DEFAULTS if header[0] not in names)
