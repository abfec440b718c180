"""The log of calls: the newest in memory, all of them in a file where one is named."""

import hashlib
import time
from collections import deque
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import msgspec
from msgspec import Struct
from starlette.requests import Request

from workers.simulator.script import Ended

LOG_MAX: Final = 10_000


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
