"""What a provider, or whoever is in its place, can do to a worker by its answers: both SDKs, over real sockets."""

import asyncio
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final

import pytest

from tests.workers.test_web import Answer, always, bomb, raw_server, server
from workers.models import anthropic, openai
from workers.models.errors import Fault
from workers.models.provider import Client, Embedder, Message, Request, Texts
from workers.models.streaming import StreamTimeouts

MB: Final = 1_000_000
REQUEST: Final = Request("a-model", None, (Message("user", "hello"),), None, 100, None, {})
STREAM_TIMEOUTS: Final = StreamTimeouts(20, 20, 20)
SDKS: Final = ("openai", "anthropic")
OPEN: Final = {
    "openai": lambda url: openai.connect("k-123", url, proxies=False),
    "azure": lambda url: openai.connect_azure("k-123", url, "2024-10-21", proxies=False),
    "anthropic": lambda url: anthropic.connect("k-123", url, proxies=False),
}
SAID: Final[dict[str, dict[str, object]]] = {
    "openai": {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]},
    "anthropic": {
        "content": [{"type": "text", "text": "hi"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 1, "output_tokens": 1},
    },
}
PIECES: Final = {
    "openai": {"choices": [{"delta": {"content": "la"}}]},
    "anthropic": {"type": "content_block_delta", "delta": {"text": "la"}},
}

Ask = Callable[[Client], Awaitable[object]]


async def completion(client: Client) -> object:
    return await client.complete(REQUEST, 20)


async def streamed(client: Client) -> object:
    return await client.stream(REQUEST, STREAM_TIMEOUTS, lambda _: None)


async def embedded(client: Client) -> object:
    assert isinstance(client, Embedder)
    return await client.embed(Texts("a-model", ("one", "two"), {}), 20)


WAYS: Final = [
    ("openai", completion),
    ("openai", streamed),
    ("openai", embedded),
    ("anthropic", completion),
    ("anthropic", streamed),
]


async def fault_of(ask: Ask, client: Client) -> Fault:
    with pytest.raises(Fault) as caught:
        await ask(client)
    return caught.value


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """The block, and whatever runs beside it in this process, never holds more bytes than that."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size


@asynccontextmanager
async def endless(head: str, chunk: bytes, status: str = "200 OK") -> AsyncIterator[str]:
    """Sends the same again and again, until it is hung up on."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\ntransfer-encoding: chunked\r\n{head}\r\n".encode())
        while not writer.is_closing():
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await writer.drain()

    async with raw_server(serve) as url:
        yield url


FOLDED: Final = "content-encoding: gzip\r\n"
COOKIES: Final = "set-cookie: tenant=a; path=/\r\nset-cookie: __cf_bm=b; path=/\r\nconnection: close\r\n"
STREAM: Final = "content-type: text/event-stream\r\n"


@pytest.mark.parametrize(("sdk", "ask"), WAYS)
async def test_twenty_answers_that_unfold_to_400_mb_are_never_held(sdk: str, ask: Ask) -> None:
    folded = bomb(400)
    with at_most(100 * MB):
        async with server(always("200 OK", folded, FOLDED + STREAM)) as url, OPEN[sdk](url) as client:
            faults = await asyncio.gather(*(fault_of(ask, client) for _ in range(20)))
    for fault in faults:
        assert (fault.outcome, "of more than" in str(fault) or "with more than" in str(fault)) == ("malformed", True)


@pytest.mark.parametrize(("sdk", "ask"), WAYS)
@pytest.mark.parametrize("folded", [True, False])
async def test_of_an_error_a_few_words_are_read(sdk: str, ask: Ask, folded: bool) -> None:
    """The SDKs read an error's body themselves, to its end."""
    words = bomb(100) if folded else b" " * 65_536
    head = "retry-after: 7\r\n" + (FOLDED if folded else "")
    with at_most(20 * MB):
        async with endless(head, words, "529 Busy") as url, OPEN[sdk](url) as client:
            fault = await fault_of(ask, client)
    assert (fault.outcome, fault.after_s) == ("server", 7)


@pytest.mark.parametrize(("sdk", "ask"), WAYS)
@pytest.mark.parametrize("coding", ["br", "zstd", "deflate", "gzip, gzip"])
async def test_only_what_was_asked_for_is_unfolded(sdk: str, ask: Ask, coding: str) -> None:
    seen: list[bytes] = []

    async def answer(request: bytes) -> bytes:
        seen.append(request.lower())
        return await always("200 OK", zlib.compress(bytes(MB)), f"content-encoding: {coding}\r\n{STREAM}")(request)

    async with server(answer) as url, OPEN[sdk](url) as client:
        fault = await fault_of(ask, client)
    assert (fault.outcome, f"in the encoding '{coding}'" in str(fault)) == ("malformed", True)
    assert b"accept-encoding: gzip\r\n" in seen[0]


@pytest.mark.parametrize("sdk", SDKS)
async def test_gzip_is_read_whole(sdk: str) -> None:
    """To the last byte where pieces of the unfolding end, and as an outage where it is cut off."""
    reply = SAID[sdk] | {"more": "x" * 200_000}
    for size in (len(json.dumps(SAID[sdk])), 65_536, 131_072):
        body = json.dumps(reply if size > 65_000 else SAID[sdk]).encode().ljust(size)
        folding = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
        folded = folding.compress(body) + folding.flush()
        async with server(always("200 OK", folded, FOLDED)) as url, OPEN[sdk](url) as client:
            assert (await client.complete(REQUEST, 5)).text == "hi"
        async with server(always("200 OK", folded[:-4], FOLDED)) as url, OPEN[sdk](url) as client:
            assert "gzip that is cut off" in str(await fault_of(completion, client))


@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize("kind", ["body", "pieces", "line", "lines without text", "empty pieces"])
async def test_an_answer_without_end_ends(sdk: str, kind: str) -> None:
    piece = json.dumps(PIECES[sdk] if kind == "pieces" else {"type": "x", "delta": {}, "choices": []})
    chunk = {
        "body": b" " * 65_536,
        "line": b"data: " + b"x" * 65_536,
        "lines without text": b"data:\n" * 10_000,
    }.get(kind, f"data: {piece}\n\n".encode() * 1_000)
    async with endless(STREAM, chunk) as url, OPEN[sdk](url) as client:
        with at_most(60 * MB):
            if (
                kind == "empty pieces" and sdk == "openai"
            ):  # they bring the reply on by nothing, so that its time ends it
                with suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await streamed(client)
            else:
                fault = await fault_of(completion if kind == "body" else streamed, client)
                assert (fault.outcome, "more than" in str(fault)) == ("malformed", True)


@pytest.mark.parametrize("sdk", OPEN)
async def test_a_cookie_of_one_answer_goes_out_with_no_other_request(sdk: str) -> None:
    """By a name: of an address that is a number aiohttp keeps none anyway."""
    seen: list[bytes] = []
    kind = "anthropic" if sdk == "anthropic" else "openai"

    async def answer(request: bytes) -> bytes:
        seen.append(request.lower())
        body = json.dumps(SAID[kind]).encode()
        return await always("200 OK", body, COOKIES)(request)

    async with server(answer) as url, OPEN[sdk](url.replace("127.0.0.1", "localhost")) as client:
        for _ in range(2):
            assert (await client.complete(REQUEST, 5)).text == "hi"
    assert [b"cookie:" in each for each in seen] == [False, False]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("sdk", OPEN)
async def test_no_key_goes_along_with_a_redirect(sdk: str, status: int) -> None:
    seen: list[bytes] = []

    async def elsewhere(request: bytes) -> bytes:
        seen.append(request)
        return await always("200 OK")(request)

    def away(url: str) -> Answer:
        return always(
            f"{status} Away", headers=f"location: {url.replace('127.0.0.1', 'localhost')}\r\nconnection: close\r\n"
        )

    async with server(elsewhere) as far, server(away(far)) as url, OPEN[sdk](url) as client:
        for ask in (completion, streamed):
            fault = await fault_of(ask, client)
            assert (fault.outcome, fault.free, "redirect" in str(fault)) == ("setup", True, True)
    assert not seen
