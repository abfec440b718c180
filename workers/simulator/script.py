"""An answer as it goes over the wire: what is said when, how it ends; and the log of those that were given."""

import asyncio
import hashlib
import time
from collections import deque
from pathlib import Path
from typing import Any, Final, Literal, Protocol
from urllib.parse import unquote

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.types import Receive, Send

SILENCE_MAX_S: Final = 600.0
STREAM: Final = "text/event-stream"
LOG_MAX: Final = 10_000

Ending = Literal["whole", "silence", "cut"]
Ended = Literal["open", "answered", "cut", "left"]


class Beat(Struct, frozen=True):
    """So many seconds after the one before."""

    wait_s: float
    data: bytes


class Script(Struct, frozen=True):
    """Without a beat not even a status is sent."""

    status: int
    headers: dict[str, str]
    beats: tuple[Beat, ...]
    content_type: str = "application/json"
    ending: Ending = "whole"


class Line(Protocol):
    """What is beneath HTTP."""

    def cut(self, client: Any, *, reset: bool) -> None:
        """End the connection from this address, at once or behind what was said."""

    def down(self, for_s: float, client: Any) -> None:
        """Listen to nobody for so long, and reset every connection; the one from this address ends in order."""


async def play(script: Script, request: Request, send: Send, line: Line) -> Ended:
    """How it ended: `left` means that the other side went before."""
    gone = asyncio.create_task(_gone(request.receive))
    try:
        return await _play(script, request, send, line, gone)
    finally:
        gone.cancel()


async def _play(script: Script, request: Request, send: Send, line: Line, gone: asyncio.Task[None]) -> Ended:
    for number, beat in enumerate(script.beats, 1):
        if beat.wait_s:
            await asyncio.wait((gone,), timeout=beat.wait_s)
        if gone.done():
            return "left"
        if number == 1:
            await send(_start(script))
        more = number < len(script.beats) or script.ending != "whole"
        await send({"type": "http.response.body", "body": beat.data, "more_body": more})
    if script.ending == "whole":
        return "answered"
    if script.ending == "cut":
        line.cut(request.client, reset=not script.beats)
    await asyncio.wait((gone,), timeout=SILENCE_MAX_S)
    return "cut" if script.ending == "cut" else "left"


def _start(script: Script) -> dict[str, Any]:
    headers = {"content-type": script.content_type, **script.headers}
    if len(script.beats) == 1 and script.ending == "whole":
        headers["content-length"] = str(len(script.beats[0].data))
    encoded = [(name.encode(), text.encode("latin-1", "replace")) for name, text in headers.items()]
    return {"type": "http.response.start", "status": script.status, "headers": encoded}


async def _gone(receive: Receive) -> None:
    if (await receive())["type"] != "http.disconnect":
        await asyncio.sleep(SILENCE_MAX_S)


class Seen(Struct):
    """One call as the simulator saw it: what tests hold against the ledger. `open` until it has ended."""

    n: int
    at: float
    path: str
    model: str
    event_id: str
    step: str
    request_hash: str
    tokens_in: int
    tokens_out: int
    status: int = 0
    fault: str = ""
    ended: Ended = "open"
    ms: float = 0.0


class Calls:
    """The newest in memory, all of them in a file where one is named."""

    def __init__(self, file: str) -> None:
        self.latest: Final[deque[Seen]] = deque(maxlen=LOG_MAX)
        self._file = Path(file) if file else None
        self._count = 0

    def begin(self, request: Request, body: bytes, model: str, tokens: tuple[int, int]) -> Seen:
        self._count += 1
        event_id, step = (unquote(request.headers.get(f"x-callboard-{name}", "")) for name in ("event-id", "step"))
        hashed = hashlib.sha256(body).hexdigest()[:16]
        seen = Seen(self._count, time.time(), request.scope["path"], model, event_id, step, hashed, *tokens)
        self.latest.append(seen)
        return seen

    def end(self, seen: Seen, ended: Ended) -> None:
        seen.ended, seen.ms = ended, round((time.time() - seen.at) * 1000, 1)
        if self._file:
            with self._file.open("ab") as log:
                log.write(msgspec.json.encode(seen) + b"\n")
