"""Events by HTTP, as fast as they are taken: so little is done for a request that a server's speed is what shows."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from msgspec import Raw, Struct, json

from tests.eventually import eventually
from tests.keys import TOKEN

LINES: Final = 64
TIMEOUT_S: Final = 120.0
TICKET: Final = {"ticket_id": "T-1", "subject": "Charged twice", "body": "My card was charged twice this month."}


class Posted(Struct, frozen=True):
    type: str
    data: Raw


EVENT: Final = json.encode({"type": "ticket.opened", "data": TICKET})


async def rate(port: int, events: int, together: int = 1) -> float:
    """Events a second, so many in each request, by LINES connections that each wait for their answer."""
    path, body = ("/events", EVENT) if together == 1 else ("/events/batch", b"[%s]" % b",".join([EVENT] * together))
    head = (
        f"POST {path} HTTP/1.1",
        "host: 127.0.0.1",
        f"authorization: Bearer {TOKEN}",
        "content-type: application/json",
    )
    request = "\r\n".join((*head, f"content-length: {len(body)}", "", "")).encode() + body
    left = iter(range(events // together))
    async with asyncio.timeout(TIMEOUT_S):
        await eventually(lambda: _listens(port))
        begun = time.perf_counter()
        await asyncio.gather(*(_line(port, request, left) for _ in range(LINES)))
    return events / (time.perf_counter() - begun)


async def _listens(port: int) -> bool:
    with suppress(ConnectionRefusedError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return True
    return False


async def _line(port: int, request: bytes, left: Iterator[int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for _ in left:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 202"), head
            _, _, length = head.lower().partition(b"content-length:")
            await reader.readexactly(int(length.partition(b"\r\n")[0]))
    finally:
        writer.close()
