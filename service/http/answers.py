"""Answers: large ones go out in pieces as the client reads, and take room until it has. Each caller has a share of it.

A server holds an answer until its client reads it: a client that never reads would fill the server's memory.
"""

from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.core.errors import TooMany, Unavailable
from service.http.app_state import AppState
from service.http.body_allowance import caller_of
from service.http.problem import on_error

PIECE: Final = 64 << 10  # bytes; while more are unread, uvicorn lets the sender wait
ANSWERS_MAX: Final = 32 << 20  # bytes of answers larger than PIECE that are not read yet


def in_pieces(app: ASGIApp) -> ASGIApp:
    """A large answer for which there is no room is a 429 or a 503; a large piece of a stream raises Unavailable.

    The answer of a request that has changed something is never refused, only that of one that reads.
    """

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        app_state: AppState = scope["state"]["app_state"]
        caller, held, refused = "", 0, False

        async def sent(message: Message) -> None:
            nonlocal caller, held, refused
            size = _length(message)
            if refused:
                return
            if size > PIECE and not held and _reads(scope):
                caller = caller_of(scope)
                try:
                    _take(app_state, caller, size)
                except Unavailable as error:
                    if message["type"] != "http.response.start":
                        raise
                    refused = True
                    await (await on_error(Request(scope), error))(scope, receive, send)
                    return
                held = size
            await _send(message, send)
            if message.get("more_body", False) and held:  # a stream holds only what is being sent
                app_state.answers.give_back(caller, held)
                held = 0

        try:
            await app(scope, receive, sent)
        finally:
            app_state.answers.give_back(caller, held)

    return answered


def _reads(scope: Scope) -> bool:
    """Whether the request has changed nothing; a page, which is no operation, says nothing of it."""
    return not scope["state"].get("changes", False)


def _length(message: Message) -> int:
    """The bytes of the answer where its head says so, else the bytes of this piece."""
    if message["type"] != "http.response.start":
        return len(message.get("body", b""))
    return next((int(value) for name, value in message["headers"] if name == b"content-length"), 0)


async def _send(message: Message, send: Send) -> None:
    body = message.get("body", b"")
    if len(body) <= PIECE:
        await send(message)
        return
    for begin in range(0, len(body), PIECE):
        rest = begin + PIECE < len(body)
        piece = {"body": body[begin : begin + PIECE], "more_body": rest or message.get("more_body", False)}
        await send({"type": message["type"], **piece})


def _take(app_state: AppState, caller: str, size: int) -> None:
    """Raises TooMany where this caller's answers fill its share, else Unavailable."""
    if full := app_state.answers.take(caller, size):
        app_state.meters.add("callboard_refused_total", ("answers", "caller" if full == "this caller" else "all"))
        if full == "this caller":
            raise TooMany("more of your answers are not read yet than one caller may have")
        raise Unavailable("more answers are not read yet than it keeps")
