"""Requests whose end can be taken for two: they get one answer, a 4xx, and the connection is closed.

From RFC 9112 (its sections are named below), and from reports about parsers: llhttp #877 (a line feed ends a request
line that names no version), CVE-2025-43859 (h11: what stands behind a chunk was not looked at), CVE-2025-55315
(Kestrel: a line feed within a chunk's extension), CVE-2019-18277 (HAProxy: a coding with a vertical tab before it).
"""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec import json

from service.core.settings import Settings
from service.http.app import create_app
from service.http.connections import PIPELINED_MAX, Connection
from tests.keys import AUTHORIZED
from tests.listening import listening_on
from tests.service.http.test_connections import BEGINNING, Api, api_of, connected

SECOND: Final = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
POST: Final = b"POST /events HTTP/1.1\r\nHost: localhost\r\n" + AUTHORIZED + b"Content-Type: application/json\r\n"
CHUNKED: Final = POST + b"Transfer-Encoding: chunked\r\n\r\n"
END: Final = b"0\r\n\r\n"
LENGTH: Final = b"Content-Length: %d\r\n" % len(SECOND)


def coded(coding: bytes) -> bytes:
    return POST + b"Transfer-Encoding:" + coding + b"\r\n\r\n" + END


# Behind each, and in its body where it has one, stands a second request.
REFUSED: Final = {
    "6.1: a length and a coding": POST + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + END,
    "6.1: a coding and a length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + END,
    "6.1: chunked is not the last": coded(b" chunked, identity"),
    "6.1: chunked twice": coded(b" chunked, chunked"),
    "6.1: two codings in two fields": coded(b" chunked\r\nTransfer-Encoding: identity"),
    "6.1: a coding in a shorter HTTP": CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0", 1) + END,
    "6.3: xchunked": coded(b" xchunked"),
    "6.3: identity alone": coded(b" identity"),
    "6.3: a vertical tab before it": coded(b" \x0bchunked"),
    "6.3: quotes around it": coded(b' "chunked"'),
    "6.3: two lengths": POST + b"Content-Length: 0\r\n" + LENGTH + b"\r\n",
    "6.3: two lengths that agree": POST + LENGTH + LENGTH + b"\r\n",
    "6.3: a list of lengths": POST + LENGTH.replace(b"\r\n", b", 5\r\n") + b"\r\n",
    "6.3: a length with a sign": POST + LENGTH.replace(b": ", b": +") + b"\r\n",
    "6.3: a length below none": POST + b"Content-Length: -1\r\n\r\n",
    "6.3: a length in hexadecimal": POST + b"Content-Length: 0x5\r\n\r\n",
    "6.3: a length with a space in it": POST + b"Content-Length: 5 5\r\n\r\n",
    "6.3: no length in a length": POST + b"Content-Length: \r\n\r\n",
    "6.3: a length that begins anew behind 64 bits": POST + b"Content-Length: 18446744073709551616\r\n\r\n",
    "5.1: a space before the colon": POST + b"Content-Length : 5\r\n\r\n",
    "5.1: a space before the colon of a coding": POST + b"Transfer-Encoding : chunked\r\n\r\n" + END,
    "5.1: no name": BEGINNING + b": x\r\n\r\n",
    "5.1: no colon": BEGINNING + b"x\r\n\r\n",
    "5.2: a folded line": BEGINNING + b"X-A: b\r\n c\r\n\r\n",
    "5.2: a folded length": POST + b"Content-Length:\r\n 5\r\n\r\n",
    "5.2: a folded coding": coded(b"\r\n chunked"),
    "2.2: a space before the first field": b"GET /healthz HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "2.2: line feeds alone": SECOND.replace(b"\r", b""),
    "2.2: a line feed alone in the head": BEGINNING + b"X-A: b\nX-B: c\r\n\r\n",
    "2.2: a line feed alone behind the request line": SECOND.replace(b"\r", b"", 1),
    "2.2: a carriage return alone": BEGINNING + b"X-A: b\rTransfer-Encoding: chunked\r\n\r\n",
    "2.2: NUL": BEGINNING + b"X-A: b\0c\r\n\r\n",
    "2.3: no version": SECOND.replace(b" HTTP/1.1", b"", 1),
    "2.3: no version and a line feed": SECOND.replace(b" HTTP/1.1\r", b"", 1),
    "2.3: another version": SECOND.replace(b"HTTP/1.1", b"HTTP/2.0", 1),
    "2.3: a version that does not exist": SECOND.replace(b"HTTP/1.1", b"HTTP/1.2", 1),
    "3.2: two hosts": BEGINNING + b"Host: other\r\n\r\n",
    "7.1: a line feed behind a chunk's size": CHUNKED + b"2\n{}\r\n" + END,
    "7.1: a line feed behind a chunk": CHUNKED + b"2\r\n{}\n" + END,
    "7.1: line feeds at the end": CHUNKED + b"2\r\n{}\r\n0\n\n",
    "7.1: other bytes behind a chunk": CHUNKED + b"2\r\n{}XX" + END,
    "7.1: a chunk's size with 0x": CHUNKED + b"0x2\r\n{}\r\n" + END,
    "7.1: a chunk's size with a sign": CHUNKED + b"-2\r\n{}\r\n" + END,
    "7.1: a space before a chunk's size": CHUNKED + b" 2\r\n{}\r\n" + END,
    "7.1: a space behind a chunk's size": CHUNKED + b"2 \r\n{}\r\n" + END,
    "7.1: a chunk's size that begins anew behind 64 bits": CHUNKED + b"10000000000000002\r\n{}\r\n" + END,
    "7.1: no chunk's size": CHUNKED + b"\r\n{}\r\n" + END,
    "7.1.1: a line feed in an extension": CHUNKED + b"2;a\nx\r\n{}\r\n" + END,
    "7.1.1: a carriage return in an extension": CHUNKED + b"2;a\rx\r\n{}\r\n" + END,
    "7.1.2: a length in the trailer": CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n",
}
# One request by the RFC, however odd it looks: one answer, and the second request has its own.
ONE: Final = {
    "a coding in capitals": coded(b" CHUNKED"),
    "a coding behind a tab": coded(b"\tchunked"),
    "an extension": CHUNKED + b'2;a=b;c="d"\r\n{}\r\n' + END,
    "a body where none is asked for": BEGINNING + b"Content-Length: %d\r\n\r\n" % len(SECOND) + SECOND,
    "empty lines before it": b"\r\n\r\n" + BEGINNING + b"\r\n",
    "a whole address": BEGINNING.replace(b" /", b" http://localhost/", 1) + b"\r\n",
    "an upgrade that nobody has": BEGINNING + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
}


async def said(api: Api, first: bytes, second: bytes) -> list[bytes]:
    """All answers until the connection is closed; `second` is sent when the first answer begins, as a proxy does."""
    async with asyncio.timeout(5), connected(api.port) as (reader, writer):
        writer.write(first)
        answers = await reader.read(1)
        writer.write(second)
        with suppress(ConnectionError):  # it was closed with bytes still on their way
            while more := await reader.read(1 << 16):
                answers += more
    assert answers.startswith(b"HTTP/1.1 ")
    return answers.split(b"HTTP/1.1 ")[1:]


async def test_what_can_be_taken_for_two_requests_is_none(settings: Settings, tmp_path: Path) -> None:
    differs = list[str]()
    async with api_of(settings, tmp_path) as api:
        for name, form in REFUSED.items():
            for sent in (form + SECOND, form):
                answers = await said(api, sent, SECOND)
                head, _, body = answers[0].partition(b"\r\n\r\n")
                problem = json.decode(body) if b"application/problem+json" in head else None
                if len(answers) != 1 or not head.startswith(b"4") or not problem or problem["status"] != int(head[:3]):
                    differs.append(f"{name}: {answers}")
        for name, form in ONE.items():
            answers = await said(api, form, SECOND)
            if [answer[:3] in (b"200", b"400", b"422") for answer in answers] != [True, True] or answers[1][
                :3
            ] != b"200":
                differs.append(f"{name}: {answers}")
        assert "Traceback" not in api.program.output
    assert not differs, "\n".join(differs)


async def test_requests_that_come_at_once_are_bounded_and_answered_in_order(settings: Settings, tmp_path: Path) -> None:
    """One read brings thousands of small ones; each would be held until those before it are answered."""
    request = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with api_of(settings, tmp_path) as api, asyncio.timeout(15):
        async with connected(api.port) as (reader, writer):
            writer.write(request + b"no request\r\n\r\n")
            assert await reader.read() == b"", "its 400 would be taken for the first one's answer"
        for many in (PIPELINED_MAX, 30_000):
            before_mb = api.memory_mb
            answers = await all_said(api, (BEGINNING + b"\r\n") * many + SECOND)
            if many == PIPELINED_MAX:
                assert answers.count(b"HTTP/1.1 200") == many + 1
            assert api.memory_mb - before_mb < 10
            assert await api.is_well()


async def all_said(api: Api, sent: bytes) -> bytes:
    answers = b""
    async with connected(api.port) as (reader, writer):
        writer.write(sent)
        with suppress(ConnectionError):
            while more := await reader.read(1 << 16):
                answers += more
    return answers


async def test_nothing_is_read_of_what_stands_behind_a_refusal(settings: Settings) -> None:
    """The rest of what one read brought would be parsed for nothing, while all others wait."""
    seen = list[bytes]()

    class Counting(Connection):
        def on_url(self, url: bytes) -> None:
            seen.append(url)
            super().on_url(url)

    async with listening_on(create_app(settings), http=Counting) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write((BEGINNING + b"\r\n") * 7_000)
        with suppress(ConnectionError):
            while await reader.read(1 << 16):
                pass
        writer.close()
    assert PIPELINED_MAX < len(seen) < 2 * PIPELINED_MAX
