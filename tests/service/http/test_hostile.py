"""Bytes from anywhere and clients that leave: never a 500, and the others are served."""

import asyncio
import re
from contextlib import closing
from typing import Any
from urllib.parse import urlencode

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import json

from service.core.settings import Settings
from tests.board import serving
from tests.eventually import eventually
from tests.keys import AT_HOME, AUTHORIZED

MEDIA = {"Content-Type": "application/json"}
EVENT = json.encode(
    {
        "specversion": "1.0",
        "type": "message.labelled",
        "source": "/hostile",
        "subject": "s",
        "partitionkey": "k",
        "time": "2026-03-01T12:00:00Z",
        "someext": "x",
        "data": {"text": "a\\b", "label": "\u00e9"},
    }
)
ODD = [
    *(b"\\u0000", b"\\ud800", b"\\udc00", b"\xff", b"\xed\xa0\x80", b"\0", b"\\", b'"', b"{", b"}", b"[", b"]", b","),
    *(
        b":",
        b"NaN",
        b"1e400",
        b"-0",
        b"1e-400",
        b"9" * 400,
        b"null",
        b"true",
        b'"x":1,',
        b'"status":1,',
        b"\xef\xbb\xbf",
    ),
    *(b"[" * 70, b'{"a":' * 70, b"0001-01-01T00:00:00+14:00", b"9999-12-31T23:59:59-14:00", b'"dueat":"', b'"id":"'),
]
MEMBERS = st.sampled_from([*json.decode(EVENT), "id", "dueat", "traceparent", "datacontenttype", "dataschema", "other"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.dates(),
    lambda deeper: st.lists(deeper, max_size=3) | st.dictionaries(st.text(max_size=5), deeper, max_size=3),
    max_leaves=8,
)
INSERTED = st.lists(st.tuples(st.integers(0, len(EVENT)), st.integers(0, 5), st.sampled_from(ODD)), max_size=3)


def spoiled(cuts: list[tuple[int, int, bytes]]) -> bytes:
    """The event, with bytes taken out and others put in."""
    body = EVENT
    for at, length, odd in cuts:
        body = body[:at] + odd + body[at + length :]
    return body


def altered(members: dict[str, Any]) -> bytes:
    return json.encode({**json.decode(EVENT), **members})


BODIES = st.lists(
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | INSERTED.map(spoiled)
    | st.dictionaries(MEMBERS, VALUES, min_size=1, max_size=4).map(altered),
    min_size=10,
    max_size=40,
)


@given(BODIES)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
async def test_any_bytes(api: httpx.AsyncClient, bodies: list[bytes]) -> None:
    answers = await asyncio.gather(*(api.post("/events", content=body, headers=MEDIA) for body in bodies))
    for body, answer in zip(bodies, answers, strict=True):
        assert answer.status_code in (202, 400, 409, 422), (body, answer.text)
        if answer.status_code == 202:
            assert json.decode(body)["type"] == "message.labelled"
        else:
            assert re.match(r"\$", answer.json()["errors"][0]["path"]), body


@given(
    st.lists(st.tuples(MEMBERS | st.sampled_from(["status", "key", "since", "until", "limit", "cursor"]), st.text()))
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_query(api: httpx.AsyncClient, query: list[tuple[str, str]]) -> None:
    printable = urlencode([(name, value.encode("utf-8", "replace")) for name, value in query])
    assert (await api.get(f"/events?{printable}")).status_code in (200, 400), printable


async def test_clients_that_leave_or_stall(settings: Settings) -> None:
    """Half a header, half a body, and gone; others that stall with their connection open cost nobody anything."""
    head = b"POST /events HTTP/1.1\r\nHost: localhost\r\n" + AUTHORIZED + b"Content-Type: application/json\r\n"
    halves = [
        b"",
        b"POST /ev",
        head,
        head + b"Content-Length: 500\r\n\r\n",
        head + b"Content-Length: 500\r\n\r\n" + EVENT,
        head + b"Transfer-Encoding: chunked\r\n\r\n10\r\n{",
    ]
    async with serving(settings) as url, httpx.AsyncClient(headers=AT_HOME, base_url=url, timeout=5) as http:
        stalled = []
        for half in halves * 5:
            writer = await _say(url, half)
            writer.transport.abort()
            stalled.append(await _say(url, half))
        response = await http.post("/events", content=EVENT, headers=MEDIA)
        assert response.status_code == 202
        assert len((await http.get("/events")).json()["items"]) == 1
        for writer in stalled:
            writer.transport.abort()


async def test_what_is_no_http(settings: Settings) -> None:
    head = b"POST /events HTTP/1.1\r\nHost: localhost\r\n" + AUTHORIZED + b"Content-Type: application/json\r\n"
    for request, status in (
        (b"hello\r\n\r\n", b"400"),
        (b"GET /events/\xff HTTP/1.1\r\nHost: localhost\r\n" + AUTHORIZED + b"\r\n", b"400"),
        (head + b"Content-Length: -1\r\n\r\n", b"400"),
        (head + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", b"400"),
        (head + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", b"400"),
        (head + b"Idempotency-Key: a\0b\r\nContent-Length: 2\r\n\r\n{}", b"400"),
        (head + b"Content-Length: 1000000000\r\n\r\n", b"413"),
        (head + b"Expect: 100-continue\r\nContent-Length: 1000000000\r\n\r\n", b"413"),
    ):
        async with serving(settings) as url:
            assert (await _answer(url, request)).startswith(b"HTTP/1.1 " + status), request


async def test_a_client_that_leaves_before_the_answer_has_said_its_event(settings: Settings) -> None:
    """The commit goes on without it, and its retry finds the event."""
    head = (
        b"POST /events HTTP/1.1\r\nHost: localhost\r\n"
        + AUTHORIZED
        + b"Content-Type: application/json\r\nIdempotency-Key: once\r\n"
    )
    async with serving(settings) as url, httpx.AsyncClient(headers=AT_HOME, base_url=url, timeout=5) as http:
        await http.get("/events")  # who asks is known by now: whoever leaves while that is looked up has said nothing
        writer = await _say(url, head + f"Content-Length: {len(EVENT)}\r\n\r\n".encode() + EVENT)
        writer.transport.abort()

        async def stored() -> list[Any]:
            items: list[Any] = (await http.get("/events?id=once")).json()["items"]
            return items

        (item,) = await eventually(stored)
        again = await http.post("/events", content=EVENT, headers={**MEDIA, "Idempotency-Key": "once"})
        assert (again.json()["event_id"], again.json()["duplicate"]) == (item["event_id"], True)


async def _say(url: str, text: bytes) -> asyncio.StreamWriter:
    host, _, port = url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(text)
    await writer.drain()
    return writer


async def _answer(url: str, text: bytes) -> bytes:
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    with closing(writer):
        writer.write(text)
        async with asyncio.timeout(5):
            return await reader.readline()
