"""Connections: a request's head and an unread answer have a bound and a deadline, so that none keeps others out.

uvicorn's protocol for HTTP, with these bounds: by itself it takes a head of any size, for as long as that takes.
"""

import asyncio
import resource
import socket
from collections import Counter
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final

from msgspec import json
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_MAX: Final = 64 << 10
HEAD_S: Final = 10.0
READ_S: Final = 30.0  # for some 64 KiB, which is what uvicorn and service/http/answers.py keep for a connection
SEND_MAX: Final = 256 << 10  # bytes of an answer that the kernel may hold; its default grows to 4 MiB a connection
CONNECTIONS_MAX: Final = 2_000
FILES_KEPT: Final = 200  # of those that this process may open: for Postgres, Redis, logs
AGAIN_S: Final = 1

LARGE: Final = f"the head of this request, its address and headers, is larger than {HEAD_MAX} bytes"
PIPELINED_MAX: Final = (
    100  # requests behind the one that is answered: each holds some KB, and one read brings thousands
)
VERSIONS: Final = ("1.0", "1.1")
NO_HTTP: Final = "this is no request in HTTP/1.1, or its headers leave open where its body ends"
LATE: Final = f"the head of this request did not arrive within {HEAD_S:g} s"
FULL: Final = "not now: as many requests as it has connections for are under way"
BOUNDS: Final = {408: "unsent", 431: "heads", 503: "connections"}  # as callboard_refused_total names them


class Connection(HttpToolsProtocol):
    """`since`: when the current head began to arrive, or the connection began or became idle.

    `read_at`: when the client last had read all of an answer, or enough of it for more to be sent.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_MAX)
        self.since: float = self.loop.time()
        self.read_at = self.since
        self.refused = self._was_asked = False
        self._answered: Any = None  # the request under way; `cycle` is the last of those that are pipelined behind it
        self._in_head = True
        self._head_bytes = 0  # of the head that is awaited, as far as it has come
        make_room(self)

    @property
    def address(self) -> str:
        return self.client[0] if self.client else ""

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way."""
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        if self.refused:
            return
        if self._in_head:
            if not self._head_bytes:
                self.since = self.loop.time()
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_MAX and not self.refused:
            self.refuse(431, LARGE)

    def on_message_begin(self) -> None:
        if self.refused:  # one read may bring thousands: to parse the rest would only keep others waiting
            raise ConnectionAbortedError(FULL)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > HEAD_MAX:
            self.refuse(431, LARGE)
        elif self.parser.get_http_version() not in VERSIONS or sum(name == b"host" for name, _ in self.headers) > 1:
            self.refuse(400, NO_HTTP)
        elif len(self.pipeline) >= PIPELINED_MAX:
            self.refuse(503, FULL)
        if self.refused:
            return
        self._was_asked, self._in_head, self._head_bytes = True, False, 0
        waits = self.is_busy
        super().on_headers_complete()
        if not waits:
            self._answered = self.cycle

    def on_body(self, body: bytes) -> None:
        if not self.refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head = True
        if not self.refused:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        self.since = self.loop.time()
        self._answered = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """uvicorn tells the last of the pipelined requests alone: the one under way would wait, or fail to write."""
        if self._answered is not None:
            self._answered.disconnected = True
            self._answered.message_event.set()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        if not self.refused:
            self.refuse(400, NO_HTTP)

    def resume_writing(self) -> None:
        self.read_at = self.loop.time()
        super().resume_writing()

    def expire(self, now: float) -> None:
        """Ends a head that takes too long; aborts an answer that nobody reads, since to close would wait for a reader.

        uvicorn's own timer ends idle connections.
        """
        if not self.transport.get_write_buffer_size():
            self.read_at = now
        elif now - self.read_at > READ_S:
            self.count("unread")
            self.transport.abort()
            return
        if self.is_busy or self.refused or now - self.since <= HEAD_S:
            return
        if self._in_head and self._head_bytes:
            self.refuse(408, LATE)
        elif not self._was_asked:
            self.transport.close()  # nothing ever came

    def count(self, bound: str, whose: str = "caller") -> None:
        self.app_state["app_state"].meters.add("callboard_refused_total", (bound, whose))

    def refuse(self, status: int, detail: str, whose: str = "caller") -> None:
        """Answers with a problem and hangs up; where that could be taken for an answer under way it only hangs up."""
        self.refused = True
        if status in BOUNDS:
            self.count(BOUNDS[status], whose)
        if self.is_busy:
            if self.pipeline or self.cycle.response_started or not self.cycle.more_body:
                self.transport.close()
                return
            self.cycle.disconnected = True  # its body is broken: this is its answer, and no other one follows
            self.cycle.message_event.set()
        title = HTTPStatus(status).phrase
        body = json.encode({"type": "about:blank", "title": title, "status": status, "detail": detail, "errors": []})
        again = f"Retry-After: {AGAIN_S}\r\n" if status == 503 else ""
        head = f"HTTP/1.1 {status} {title}\r\nContent-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n"
        head += f"{again}X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()


def connections_max() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(CONNECTIONS_MAX, max(files - FILES_KEPT, FILES_KEPT // 4))


def make_room(new: Connection) -> None:
    """Where there are as many as may be, one goes: the oldest that is idle, of the address with most of those."""
    connections: set[Any] = new.connections
    if len(connections) <= connections_max():
        return
    waiting = [
        connection
        for connection in connections
        if connection is not new and not connection.is_busy and not connection.refused
    ]
    if not waiting:
        new.refuse(503, FULL, "all")
        return
    held = Counter(connection.address for connection in waiting)
    last = max(waiting, key=lambda connection: (held[connection.address], -connection.since))
    last.refused = True
    last.count("connections")
    last.transport.close()


def expire_all(connections: Iterable[Any], now: float) -> None:
    for connection in list(connections):
        connection.expire(now)
