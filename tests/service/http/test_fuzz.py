"""Requests of chance to the program itself: never a 5xx but for a bound, every error a problem, and it stays well.

`FUZZ_SEED` asks the same ones again, `FUZZ_S` says for how long (8 s).
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from random import Random
from typing import Final

import h11
from msgspec import Struct, json
from starlette.routing import Route

from service.core.settings import Settings
from service.http.app import create_app
from tests.fuzzing import EVENT, Asked, Maker
from tests.keys import bearer, make_key
from tests.service.http.test_connections import Api, api_of, connected

SEED: Final = os.environ.get("FUZZ_SEED") or str(Random().randrange(1_000_000))
DURATION_S: Final = float(os.environ.get("FUZZ_S") or 8)
PAGES: Final = ("/", "/login", "/ui/events/{event_id}")  # what these refuse is a page
ANSWER_S: Final = 10.0
SILENT_S: Final = 0.1
HANDS: Final = 4
GROWTH_MB: Final = 80
UNSAID: Final = {b"server", b"x-powered-by", b"access-control-allow-origin"}
PROBLEM: Final = b"application/problem+json"


class Answer(Struct, frozen=True):
    """`body`: None of a stream, which is left where it began."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes | None
    closes: bool


class Hand:
    """One connection at a time, kept as long as the API keeps it."""

    def __init__(self, port: int) -> None:
        self._port: Final = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.before = self._asked = b""

    async def ask(self, method: str, raw: bytes) -> Answer | None:
        """None where it was hung up without an answer."""
        reader, writer = self._streams or await asyncio.open_connection("127.0.0.1", self._port)
        self._streams = reader, writer
        self.before, self._asked = self._asked, raw[:1_000]
        writer.write(raw)
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "localhost")]))
        parser.send(h11.EndOfMessage())
        answer = None
        with suppress(ConnectionError):
            answer = await self._read(reader, parser, method)
        if answer is None or answer.closes:
            self.close()
        return answer

    async def _read(self, reader: asyncio.StreamReader, parser: h11.Connection, method: str) -> Answer | None:
        status, headers, body = 0, dict[bytes, bytes](), b""
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                piece = await reader.read(1 << 16)
                if not piece and not status:
                    return None
                parser.receive_data(piece)
            elif isinstance(event, h11.Response):
                status, headers = event.status_code, dict(event.headers)
                if method != "HEAD" and b"text/event-stream" in headers.get(b"content-type", b""):
                    return Answer(status, headers, None, True)
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return Answer(status, headers, body, parser.their_state is h11.MUST_CLOSE)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


def trouble(request: Asked, answer: Answer) -> str | None:
    """What is wrong with an answer."""
    if answer.status >= 500 and not (answer.status == 503 and b"retry-after" in answer.headers):
        return f"{answer.status}: {answer.body!r}"
    if answer.headers.get(b"x-content-type-options") != b"nosniff" or answer.headers.keys() & UNSAID:
        return f"{answer.status} with headers that are too few or too many: {answer.headers}"
    if b"Traceback" in (answer.body or b""):
        return f"{answer.status} that tells of the inside: {answer.body!r}"
    if answer.status < 400 or request.method == "HEAD" or request.path in PAGES:
        return None
    if answer.headers.get(b"content-type") != PROBLEM or not answer.body:
        return f"{answer.status} that is no problem: {answer.headers} {answer.body!r}"
    problem = json.decode(answer.body)
    fits = (
        problem["status"] == answer.status
        and problem["title"]
        and problem["detail"]
        and isinstance(problem["errors"], list)
    )
    return None if fits else f"a problem that does not fit its answer: {problem}"


async def answers_of_spoiled(api: Api, raw: bytes) -> bytes:
    """Whatever comes; what may be half a request is waited for no longer than SILENT_S."""
    answers = b""
    async with connected(api.port) as (reader, writer):
        with suppress(ConnectionError, TimeoutError):
            writer.write(raw)
            while True:
                async with asyncio.timeout(SILENT_S):
                    piece = await reader.read(1 << 16)
                if not piece:
                    break
                answers += piece
    return answers


def posted(event: object, headers: dict[str, str]) -> bytes:
    body = json.encode(event)
    fields = {"Host": "localhost", **headers, "Content-Type": "application/json", "Content-Length": str(len(body))}
    return (
        "".join(("POST /events HTTP/1.1\r\n", *(f"{name}: {fields[name]}\r\n" for name in fields), "\r\n")).encode()
        + body
    )


async def fuzz(
    api: Api, hand: Hand, maker: Maker, headers: dict[str, str], numbers: "count[int]"
) -> AsyncIterator[tuple[str, str]]:
    """(route, status) of each request that was asked; raises AssertionError with what asks it again."""
    loop = asyncio.get_running_loop()
    until = loop.time() + DURATION_S
    while loop.time() < until:
        n = next(numbers)
        request = maker.make(Random(f"{SEED} {n}"))
        message = f"FUZZ_SEED={SEED}, request {n}: {request.raw[:3_000]!r}"
        if request.is_spoiled:
            answers = await answers_of_spoiled(api, request.raw)
            wrong = [each[:3] for each in answers.split(b"HTTP/1.1 5")[1:] if each[:2] != b"03"]
            assert not wrong, f"{message}\n{answers!r}"
            continue
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await hand.ask(request.method, request.raw)
        except (TimeoutError, h11.RemoteProtocolError) as error:
            raise AssertionError(
                f"{message}\nno whole answer; before it on this connection: {hand.before!r}"
            ) from error
        wrong_with_it = trouble(request, answer) if answer else "it was hung up without an answer"
        assert wrong_with_it is None, f"{message}\n{wrong_with_it}"
        yield request.path, str(answer and answer.status)
        if n % 25 == 0:  # on the same connection, where it was kept
            good = await hand.ask("POST", posted(EVENT, headers))
            assert good is not None, message
            assert good.status == 202, message
            maker.names["{event_id}"] = json.decode(good.body or b"")["event_id"]


async def test_requests_of_chance(settings: Settings, tmp_path: Path) -> None:
    print(f"FUZZ_SEED={SEED}")
    headers = bearer(await make_key(settings, "admin"))
    routes = [
        (name, route.path)
        for route in create_app(settings).routes
        if isinstance(route, Route)
        for name in route.methods or ()
    ]
    async with api_of(settings, tmp_path) as api:
        with closing(Hand(api.port)) as hand:
            answer = await hand.ask("POST", posted(EVENT, headers))
        assert answer is not None
        assert answer.body is not None
        names = {"{event_id}": json.decode(answer.body)["event_id"], "{dead_id:uuid}": EVENT_ID, "{key:path}": "k"}
        maker = Maker(
            routes,
            {**names, "{name:path}": "tickets/classify", "{type}": "ticket.opened", "{name}": "tickets"},
            headers,
        )
        before_mb, numbers, seen = api.memory_mb, count(), Counter[str]()
        paths = set[str]()

        async def asks() -> None:
            with closing(Hand(api.port)) as hand:
                async for path, status in fuzz(api, hand, maker, headers, numbers):
                    paths.add(path)
                    seen[status] += 1

        async with asyncio.TaskGroup() as hands:
            for _ in range(HANDS):
                hands.create_task(asks())
        print(f"{sum(seen.values())} requests: {dict(seen)}; {before_mb:.0f} → {api.memory_mb:.0f} MB")
        assert paths == {path for _, path in routes}
        assert {"200", "202", "400", "401", "404", "405", "422"} <= seen.keys()
        assert api.memory_mb - before_mb < GROWTH_MB
        assert await api.is_well()
        assert "Traceback" not in api.program.output


EVENT_ID: Final = "0197b2c4-5d3e-7c1a-9f60-3a52d7c81e44"
