"""The web client against real servers that behave badly."""

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from service.core.destinations import ON_THIS_MACHINE, allowed
from service.core.errors import Outage, Reject
from workers.web import REPLY_MAX, open_web

LOOPBACK = allowed(ON_THIS_MACHINE)

Answer = Callable[[bytes], Awaitable[bytes]]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw_server(serve: Serve) -> AsyncIterator[str]:
    tasks: list[asyncio.Task[None]] = []

    async def whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await serve(reader, writer)
            await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.create_task(whole(reader, writer)))

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/hook/s3cret"
        await asyncio.gather(*tasks)


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """Hands each request, head and body, to `answer` and sends back what it says."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        writer.write(await answer(head + await reader.readexactly(int(length.split(b":")[1]))))

    async with raw_server(serve) as url:
        yield url


def always(status: str, body: bytes = b"", headers: str = "") -> Answer:
    async def answer(_: bytes) -> bytes:
        return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body

    return answer


async def test_posts_json_with_the_key() -> None:
    seen: list[bytes] = []

    async def answer(request: bytes) -> bytes:
        seen.append(request)
        return b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\nok"

    async with server(answer) as url, open_web(LOOPBACK) as web:
        reply = await web.post(url, json={"urgency": "high"}, idempotency_key="e1/page_on_call")
    assert (reply.status, reply.body) == (202, b"ok")
    assert b"idempotency-key: e1/page_on_call" in seen[0].lower()
    assert seen[0].endswith(b'{"urgency":"high"}')


async def test_the_name_of_a_step_is_no_header_of_its_own() -> None:
    """A route's label, and so a step's key, may hold any letters; a header holds ASCII."""
    seen: list[bytes] = []

    async def answer(request: bytes) -> bytes:
        seen.append(request)
        return await always("200 OK")(request)

    async with server(answer) as url, open_web(LOOPBACK) as web:
        await web.post(url, json={}, idempotency_key="e1/später/葉\r\nX-Admin: 1\0\x7f/a b")
    assert b"idempotency-key: e1/sp%C3%A4ter/%E8%91%89%0D%0AX-Admin: 1%00%7F/a b\r\n" in seen[0]


@pytest.mark.parametrize("status", ["500 Oops", "503 Busy", "429 Slow", "408 Late"])
async def test_what_passes_is_an_outage(status: str) -> None:
    async with server(always(status, headers="retry-after: 7\r\n")) as url, open_web(LOOPBACK) as web:
        with pytest.raises(Outage, match=status[:3]) as caught:
            await web.post(url, json={}, idempotency_key="k")
    assert 7 <= caught.value.after_s <= 8
    assert caught.value.max_uncharged == (None if status == "429 Slow" else 150), "a day of it; then it is an attempt"
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("status", ["400 Bad", "401 Who", "404 Where", "410 Gone", "302 Found"])
async def test_a_refusal_is_the_events_own(status: str) -> None:
    async with server(always(status, headers="location: /other\r\n")) as url, open_web(LOOPBACK) as web:
        with pytest.raises(Reject, match=status[:3]) as caught:
            await web.post(url, json={}, idempotency_key="k")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("99999", 60, 60),
        ("-5", 0, 1),
        ("nan", 1, 2),
        ("soon", 1, 2),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 60, 60),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 1),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", 1, 2),
    ],
)
async def test_retry_after_has_a_cap_and_may_be_garbage(value: str, least: float, most: float) -> None:
    async with server(always("503 Busy", headers=f"retry-after: {value}\r\n")) as url, open_web(LOOPBACK) as web:
        with pytest.raises(Outage) as caught:
            await web.post(url, json={}, idempotency_key="k")
    assert least <= caught.value.after_s <= most


async def test_nobody_there() -> None:
    async with server(always("200 OK")) as url:
        pass
    async with open_web(LOOPBACK) as web:
        with pytest.raises(Outage, match="can't be reached"):
            await web.post(url, json={}, idempotency_key="k")


async def test_the_deadline_is_total() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        gone = False
        while not gone:
            writer.write(b".")
            with suppress(TimeoutError):
                gone = not await asyncio.wait_for(reader.read(100), 0.02)

    async with raw_server(drip) as url, open_web(LOOPBACK) as web:
        with pytest.raises(Outage, match=r"no whole answer in 0\.3 s"):
            await web.post(url, json={}, idempotency_key="k", timeout_s=0.3)


async def test_an_answer_without_end_is_refused() -> None:
    async with server(always("200 OK", b"x" * (REPLY_MAX + 1))) as url, open_web(LOOPBACK) as web:
        with pytest.raises(Reject, match="more than"):
            await web.post(url, json={}, idempotency_key="k")


@pytest.mark.parametrize(
    ("url", "json"), [("nonsense", {}), ("ftp://127.0.0.1/", {}), ("http://a:b/", {}), ("http://x", object())]
)
async def test_what_can_never_be_posted_is_rejected(url: str, json: object) -> None:
    async with open_web(LOOPBACK) as web:
        with pytest.raises(Reject):
            await web.post(url, json=json, idempotency_key="k")


def bomb(megabytes: int) -> bytes:
    """So many megabytes of gzip, made without holding them."""
    folding = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    return b"".join([*(folding.compress(bytes(1_000_000)) for _ in range(megabytes)), folding.flush()])


async def test_gzip_is_unfolded_as_far_as_an_answer_may_go() -> None:
    """400 MB in 400 KB, twenty at once: neither is ever held."""
    packed = gzip.compress(b'{"ok": true}')
    async with server(always("200 OK", packed, "content-encoding: gzip\r\n")) as url, open_web(LOOPBACK) as web:
        assert (await web.post(url, json={}, idempotency_key="k")).body == b'{"ok": true}'
    folded = bomb(400)
    tracemalloc.start()
    async with server(always("200 OK", folded, "content-encoding: gzip\r\n")) as url, open_web(LOOPBACK) as web:
        posts = [web.post(url, json={}, idempotency_key="k") for _ in range(20)]
        for result in await asyncio.gather(*posts, return_exceptions=True):
            assert isinstance(result, Reject), result
            assert f"more than {REPLY_MAX} bytes" in str(result)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 100_000_000


@pytest.mark.parametrize("packed", [b"no gzip at all", gzip.compress(bytes(1000))[:-4]], ids=["none", "cut off"])
async def test_gzip_that_is_none_is_an_outage(packed: bytes) -> None:
    async with server(always("200 OK", packed, "content-encoding: gzip\r\n")) as url, open_web(LOOPBACK) as web:
        with pytest.raises(Outage, match="gzip that is"):
            await web.post(url, json={}, idempotency_key="k")


async def test_an_encoding_that_was_not_asked_for_is_a_refusal() -> None:
    async with server(always("200 OK", b"x", "content-encoding: br\r\n")) as url, open_web(LOOPBACK) as web:
        with pytest.raises(Reject, match="in the encoding 'br'"):
            await web.post(url, json={}, idempotency_key="k")


async def test_a_cookie_of_one_answer_goes_out_with_no_other_post() -> None:
    seen: list[bytes] = []

    async def answer(request: bytes) -> bytes:
        seen.append(request.lower())
        return b"HTTP/1.1 200 OK\r\nset-cookie: tenant=a; path=/\r\ncontent-length: 0\r\n\r\n"

    async with server(answer) as url, open_web(LOOPBACK) as web:
        for _ in range(2):
            await web.post(url, json={}, idempotency_key="k")
    assert [b"cookie:" in each for each in seen] == [False, False]
