"""Whatever is wrong is said as an RFC 9457 problem, with the path of the field; it is never a 500."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
from msgspec import json
from msgspec.structs import replace

from service.core.settings import Settings
from tests.board import serving
from tests.keys import AT_HOME

MEDIA = {"Content-Type": "application/json"}
REST = b'"type":"message.labelled","data":{"text":"a","label":"b"}'
LABELLED: dict[str, Any] = {"type": "message.labelled", "data": {"text": "a", "label": "b"}}


def with_data(data: bytes) -> bytes:
    return b'{"type":"message.labelled","data":' + data + b"}"


def nested(levels: int) -> bytes:
    """An event that is `levels` deep: itself, and lists in an attribute."""
    return b'{"deep":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"," + REST + b"}"


WRONG: list[tuple[str, bytes, int, str]] = [
    ("empty", b"", 400, "$"),
    ("blank", b" \n", 400, "$"),
    ("no JSON", b"hello", 400, "$"),
    ("cut off", b'{"type":"ticket.opened","da', 400, "$"),
    ("cut off behind an extension", b'{"ext":1,' + REST, 400, "$"),
    ("something behind the end", b"{" + REST + b"} x", 400, "$"),
    ("something behind the end, with an extension", b'{"ext":1,' + REST + b"} x", 400, "$"),
    ("a list", b"[]", 422, "$"),
    ("a text", b'"x"', 422, "$"),
    ("null", b"null", 422, "$"),
    ("no type", b'{"data":{}}', 422, "$.type"),
    ("a type that is none", b'{"type":7}', 422, "$.type"),
    ("unknown type", b'{"type":"ticket.closed","data":{}}', 422, "$.type"),
    ("no data", b'{"type":"ticket.opened"}', 422, "$.data.ticket_id"),
    ("data that is no object", with_data(b"[]"), 422, "$.data"),
    ("data null", with_data(b"null"), 422, "$.data"),
    ("a field that is missing", with_data(b'{"text":"a"}'), 422, "$.data.label"),
    ("an unknown field", with_data(b'{"text":"a","label":"b","more":1}'), 422, "$.data.more"),
    ("a wrong field", with_data(b'{"text":"a","label":7}'), 422, "$.data.label"),
    ("a field too short", with_data(b'{"text":"","label":"b"}'), 422, "$.data.text"),
    ("a field too long", with_data(b'{"text":"' + b"a" * 50_001 + b'","label":"b"}'), 422, "$.data.text"),
    ("another specversion", b'{"specversion":"0.3",' + REST + b"}", 422, "$.specversion"),
    ("an id too long", b'{"id":"' + b"i" * 201 + b'",' + REST + b"}", 422, "$.id"),
    ("an empty id", b'{"id":"",' + REST + b"}", 422, "$.id"),
    ("a key too long", b'{"partitionkey":"' + b"k" * 201 + b'",' + REST + b"}", 422, "$.partitionkey"),
    ("a time that is none", b'{"time":"yesterday",' + REST + b"}", 422, "$.time"),
    ("a time without a zone", b'{"dueat":"2026-03-01T12:00:00",' + REST + b"}", 422, "$.dueat"),
    ("a time before time", b'{"dueat":"0001-01-01T00:00:00+14:00",' + REST + b"}", 422, "$.dueat"),
    ("no trace", b'{"traceparent":"7",' + REST + b"}", 422, "$.traceparent"),
    ("data that is no JSON", b'{"datacontenttype":"text/xml",' + REST + b"}", 422, "$.datacontenttype"),
    ("data as base64", b'{"type":"ticket.opened","data_base64":"e30="}', 422, "$.data_base64"),
    ("65 deep", nested(65), 400, "$"),
    ("65 deep in data", with_data(b'{"text":' + b"[" * 63 + b"]" * 63 + b"}"), 400, "$"),
    ("100,000 deep", b"[" * 100_000, 400, "$"),
    ("100,000 deep objects", b'{"a":' * 100_000, 400, "$"),
    ("NUL", with_data(b'{"text":"a\\u0000b","label":"b"}'), 422, "$.data.text"),
    ("NUL in an attribute", b'{"subject":"\\u0000",' + REST + b"}", 422, "$.subject"),
    ("NUL in a name", b'{"a\\u0000":1,' + REST + b"}", 422, "$"),
    ("NUL behind a backslash", with_data(b'{"text":"\\\\\\u0000","label":"b"}'), 422, "$.data.text"),
    ("a bare NUL", with_data(b'{"text":"a\0b","label":"b"}'), 400, "$"),
    ("half a surrogate pair", with_data(b'{"text":"\\ud800","label":"b"}'), 400, "$.data.text"),
    ("the other half", with_data(b'{"text":"\\udc00x","label":"b"}'), 400, "$.data.text"),
    ("half a pair in an extension", b'{"ext":"\\ud800",' + REST + b"}", 400, "$.ext"),
    ("NaN", with_data(b'{"text":NaN,"label":"b"}'), 400, "$.data.text"),
    ("infinite", with_data(b'{"text":"a","label":-Infinity}'), 400, "$.data.label"),
    ("more than a double holds", with_data(b'{"text":1e400,"label":"b"}'), 422, "$.data.text"),
    ("more than Postgres holds", b'{"ext":1e200000,' + REST + b"}", 422, "$.ext"),
    ("more digits than a number has", b'{"ext":' + b"9" * 5000 + b"," + REST + b"}", 422, "$.ext"),
    ("BOM", b"\xef\xbb\xbf{" + REST + b"}", 400, "$"),
    ("UTF-16", ("{" + REST.decode() + "}").encode("utf-16"), 400, "$"),
    ("UTF-16 without BOM", ("{" + REST.decode() + "}").encode("utf-16-le"), 400, "$"),
    ("no UTF-8", with_data(b'{"text":"\xff","label":"b"}'), 400, "$"),
    ("a surrogate in UTF-8", with_data(b'{"text":"\xed\xa0\x80","label":"b"}'), 400, "$"),
    ("no UTF-8 in an extension", b'{"ext":"\xff",' + REST + b"}", 400, "$"),
    ("no UTF-8 behind an extension", b'{"ext":1,"subject":"\xff",' + REST + b"}", 400, "$"),
    ("no UTF-8 in a name", b'{"ext":1,"\xff":1,' + REST + b"}", 400, "$"),
]
FITS: list[tuple[str, bytes]] = [
    ("brackets in a text", with_data(b'{"text":"' + b"[{" * 200 + b'","label":"b"}')),
    ("a backslash before u0000", with_data(b'{"text":"\\\\u0000","label":"b"}')),
    ("a whole surrogate pair", with_data(b'{"text":"\\ud83d\\ude00","label":"b"}')),
    ("a field just short enough", with_data(b'{"text":"' + b"a" * 50_000 + b'","label":"b"}')),
    ("the highest character", with_data('{"text":"\U0010ffff\ufffe","label":"b"}'.encode())),
    (
        "the longest names",
        json.encode({**LABELLED, "id": "😀" * 200, "source": "😀" * 200, "partitionkey": "😀" * 200}),
    ),
    ("a number beyond 64 bits", b'{"ext":' + b"9" * 300 + b"," + REST + b"}"),
    ("the earliest time", b'{"time":"0001-01-01T00:00:00+14:00",' + REST + b"}"),
]


def assert_problem(response: httpx.Response, status: int, path: str | None = None) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert set(body) == {"type", "title", "status", "detail", "instance", "errors"}
    assert (body["status"], body["instance"]) == (status, response.request.url.path)
    assert body["title"]
    assert body["detail"]
    assert body["errors"] == ([{"path": path, "message": body["detail"]}] if path else [])


async def test_bad_bodies(api: httpx.AsyncClient) -> None:
    for what, body, status, path in WRONG:
        response = await api.post("/events", content=body, headers=MEDIA)
        assert (response.status_code, [error["path"] for error in response.json()["errors"]]) == (status, [path]), what
        assert_problem(response, status, path)
    assert (await api.get("/events")).json()["items"] == []


async def test_what_looks_bad_but_fits(api: httpx.AsyncClient) -> None:
    for what, body in FITS:
        response = await api.post("/events", content=body, headers=MEDIA)
        assert response.status_code == 202, (what, response.text)
        shown = (await api.get(response.headers["location"])).json()
        assert shown["data"] == json.decode(body)["data"], what


async def test_64_levels_are_not_too_deep(api: httpx.AsyncClient) -> None:
    response = await api.post("/events", content=nested(64), headers=MEDIA)
    assert_problem(response, 422, "$.deep")  # wrong for what it is, not for how deep it goes


async def test_a_long_unfinished_text_costs_no_time(api: httpx.AsyncClient) -> None:
    """Half a million escaped quotes and no end: a careless look for strings would take hours over them."""
    response = await api.post("/events", content=b"[" * 65 + b'"' + b'\\"' * 500_000, headers=MEDIA, timeout=5)
    assert_problem(response, 400, "$")


async def test_too_large(api: httpx.AsyncClient, settings: Settings) -> None:
    whole = json.encode(LABELLED)
    fits = whole + b" " * (settings.body_max - len(whole))
    assert (await api.post("/events", content=fits, headers=MEDIA)).status_code == 202
    assert_problem(await api.post("/events", content=fits + b" ", headers=MEDIA), 413, "$")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield fits[: 1 << 16]

    chunked = await api.post("/events", content=chunks(), headers=MEDIA)
    assert "content-length" not in chunked.request.headers
    assert_problem(chunked, 413, "$")
    assert chunked.headers["connection"] == "close"


async def test_other_media(api: httpx.AsyncClient) -> None:
    for media in ("", "text/plain", "application/x-www-form-urlencoded", "application/xml", "json"):
        assert_problem(await api.post("/events", content=b"{}", headers={"Content-Type": media}), 415)
    assert_problem(await api.post("/events", content=b"{}"), 415)
    binary = await api.post("/events", json=LABELLED["data"], headers={"ce-specversion": "1.0", "ce-id": "1"})
    assert_problem(binary, 415)
    packed = await api.post("/events", content=b"\x1f\x8b", headers={**MEDIA, "Content-Encoding": "gzip"})
    assert_problem(packed, 415)


async def test_elsewhere(api: httpx.AsyncClient) -> None:
    for path in (
        "/events/0197b2c4-5d3e-7c1a-9f60-3a52d7c81e44",
        "/events/no-uuid",
        "/events/%00",
        "/events/%ff",
        "/nowhere",
    ):
        response = await api.get(path)
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"
    for method, path, allowed in (
        ("PUT", "/events", "GET, HEAD, POST"),
        ("OPTIONS", "/dead-letters", "DELETE, GET, HEAD"),
        ("DELETE", "/healthz", "GET, HEAD"),
    ):
        response = await api.request(method, path)
        assert_problem(response, 405)
        assert response.headers["allow"] == allowed


async def test_queries_that_do_not_fit(api: httpx.AsyncClient) -> None:
    for path, name in (
        ("/events?status=done", "status"),
        ("/dead-letters?reason=old", "reason"),
        ("/dead-letters?cursor=9223372036854775808", "cursor"),
        ("/prompt-stats?since=x", "since"),
    ):
        assert_problem(await api.get(path), 400, f"$.{name}")
    for path in (
        *("/dead-letters?type=%00", "/pipelines/%00", "/actors/%00"),
        *("/dead-letters?since=0001-01-01T00:00:00%2B14:00", "/prompt-stats?until=9999-12-31T23:59:59-01:00"),
        "/prompt-stats?until=0001-01-01T00:00:00Z",
    ):
        assert_problem(await api.get(path), 400)
    for query in (
        *("limit=0", "limit=501", "limit=-1", "limit=many", "limit=", "cursor=x", "cursor=", "colour=red"),
        *(
            "since=yesterday",
            "since=2026-03-01T00:00:00",
            "until=soon",
            "id=%00",
            "source=a%00b",
            "key=%00",
            "type=%00",
        ),
    ):
        assert_problem(await api.get(f"/events?{query}"), 400, f"$.{query.partition('=')[0]}")
    for query in (
        *("since=0001-01-01T00:00:00Z", "until=0001-01-01T00:00:00%2B14:00", "until=1969-12-31T23:59:59Z"),
        *("since=9999-12-31T23:59:59Z", "id=%ff", "key=%ed%a0%80", "cursor=00000000-0000-0000-0000-000000000000"),
    ):
        response = await api.get(f"/events?{query}")
        assert (response.status_code, response.json()) == (200, {"items": [], "next": None}), query


async def test_postgres_away(settings: Settings) -> None:
    away = replace(settings, database_url="postgresql://127.0.0.1:9/none")
    async with serving(away) as url, httpx.AsyncClient(headers=AT_HOME, base_url=url, timeout=5) as http:
        paths = ("/events", "/events/0197b2c4-5d3e-7c1a-9f60-3a52d7c81e44", "/workers", "/readyz")
        for response in await asyncio.gather(*map(http.get, paths)):
            assert_problem(response, 503)
            assert int(response.headers["retry-after"]) >= 1
        assert (await http.get("/healthz")).status_code == 200


async def test_every_answer_says_what_it_is_and_is_kept_by_nobody(api: httpx.AsyncClient) -> None:
    """Errors, pages, files, streams and health too; what may be kept says so itself."""
    event_id = (await api.post("/events", json={**LABELLED, "dueat": "2099-01-01T00:00:00Z"})).json()["event_id"]
    paths = [f"/events/{event_id}", "/events", "/nowhere", "/healthz", "/readyz", "/metrics", "/types", "/openapi.json"]
    for path in (*paths, "/", "/events/none", "/types/message.labelled/schema", "/ui/static/none"):
        headers = (await api.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["cache-control"] == "no-store", path
        assert len(headers.get_list("cache-control")) == 1
    async with api.stream("GET", f"/events/{event_id}/stream") as stream:
        assert (stream.headers["cache-control"], stream.headers["x-content-type-options"]) == ("no-cache", "nosniff")
