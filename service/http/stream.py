"""`/events/{event_id}/stream`: what happens to an event, while it happens, as server-sent events."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from service.access import keys
from service.core.errors import TooMany, Unavailable, text_of
from service.core.servers import ACQUIRE_TIMEOUT_S, POSTGRES_ERRORS
from service.feed import live_log
from service.feed.catch_up import Standing
from service.feed.listeners import messages, standing
from service.http.app_state import AppState, event_id_of, pool_of, state_of
from service.http.auth import admit, caller
from service.http.body_allowance import caller_of

MEDIA: Final = "text/event-stream"
HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
CHECK_S: Final = 0.2
AGAIN_S: Final = 5
SEQ_MAX: Final = 1 << 63

Admitted = Callable[[], Awaitable[None]]
"""Raises HTTPException where who asked would not be let in any more, Unavailable where nobody can say."""

log = logging.getLogger("callboard.stream")


async def follow_event(request: Request) -> Response:
    """200 and a stream that ends with the event; 204, which tells a browser to stay away, where that has been read."""
    event_id, app = event_id_of(request), state_of(request)
    last = _last(request)
    pool, who = pool_of(request), caller_of(request.scope)
    state = await standing(pool, event_id, caller(request).tenant, ACQUIRE_TIMEOUT_S)
    if state is None:
        raise HTTPException(404, f"no event {event_id}")
    if last is not None and _is_read(state[0], last):
        return Response(status_code=204)
    if request.method == "HEAD":  # a stream would hold the connection until the event has ended, and say nothing
        head = Response(headers=HEADERS, media_type=MEDIA)
        del head.headers["content-length"]
        return head
    app.listeners.admit()
    _take_share(app, who)
    stream = messages(app.listeners, pool, event_id, state, last)
    return EventStream(stream, lambda: admit(request, "read"), lambda: app.streams.give_back(who, 1))


class EventStream(StreamingResponse):
    """Whatever ends it, it gives its place back. service/http/connections.py ends it where the client does not read."""

    def __init__(self, stream: AsyncGenerator[bytes, None], admitted: Admitted, leave: Callable[[], None]) -> None:
        self.stream: Final = stream
        self._leave: Final = leave
        super().__init__(_until_trouble(stream, admitted), headers=HEADERS, media_type=MEDIA)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self.stream):
            try:
                await super().stream_response(send)
            except Unavailable:  # there is no room for the next message, which is large: the client connects again
                await send({"type": "http.response.body", "body": b""})


async def _until_trouble(stream: AsyncGenerator[bytes, None], admitted: Admitted) -> AsyncIterator[bytes]:
    """What goes wrong ends the stream, early and in order: its client comes again with what it has read.

    So does a key that does not hold any more. While nobody can say whether it does, who was let in stays.
    """
    now, check = asyncio.get_running_loop().time, None
    checked_at = now()
    try:
        async for message in stream:
            if check is None and now() - checked_at >= keys.HELD_S:
                check = asyncio.ensure_future(admitted())
            if check is not None and (await asyncio.wait([check], timeout=CHECK_S))[0]:
                done, check, checked_at = check, None, now()
                with suppress(Unavailable):
                    done.result()
            yield message
    except (Unavailable, HTTPException, *POSTGRES_ERRORS) as error:
        log.warning("a stream ends early: %s", text_of(error))
    finally:
        if check is not None:
            check.cancel()


def _take_share(app: AppState, who: str) -> None:
    """Raises TooMany where this caller has its share of the streams, Unavailable where all are taken."""
    if full := app.streams.take(who, 1):
        app.meters.add("callboard_refused_total", ("streams", "caller" if full == "this caller" else "all"))
        if full == "this caller":
            raise TooMany("more of your streams are open than one caller may have", AGAIN_S)
        raise Unavailable("as many streams are open as one API serves (CALLBOARD_STREAMS_MAX)", AGAIN_S)


def _is_read(stands: Standing, last: int) -> bool:
    return stands.ended and last >= live_log.seq((stands.claim, live_log.N_MAX), live_log.END)


def _last(request: Request) -> int | None:
    last_id = request.headers.get("last-event-id", "")
    if not last_id:
        return None
    if not (last_id.isascii() and last_id.isdecimal() and int(last_id[:20]) < SEQ_MAX):
        raise HTTPException(400, "Last-Event-ID is a number that was the `id` of an event of this stream")
    return int(last_id[:20])
