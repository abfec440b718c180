"""Requests of chance: by the grammar with odd parts, and spoiled in their bytes. The same seed makes the same ones."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final
from urllib.parse import quote_from_bytes

from msgspec import Struct, json

METHODS: Final = (*("GET", "HEAD", "POST", "PUT", "DELETE"), *("PATCH", "OPTIONS", "TRACE", "PROPFIND", "get", "Q"))
EVENT: Final = {"type": "message.labelled", "data": {"text": "a", "label": "b"}}
TICKET: Final = {"type": "ticket.opened", "data": {"ticket_id": "T", "subject": "s", "body": "b"}, "partitionkey": "k"}
# What a route reads, as it would be right.
BODIES: Final[dict[str, Any]] = {
    "/events": EVENT,
    "/events/batch": [EVENT, TICKET, EVENT],
    "/events/{event_id}/replay": {"from": "classify", "again": True},
    "/dead-letters/replay": {"type": "ticket.opened", "since": "2026-01-01T00:00:00Z", "dry_run": True},
    "/dead-letters": {"ids": ["0197b2c4-5d3e-7c1a-9f60-3a52d7c81e44"]},
    "/collections/{name}/search": {
        "query": "cat",
        "mode": "hybrid",
        "k": 3,
        "filter": {"or": [{"a": {"gt": 1, "in": [1, "b"]}}, {"not": {"b": {"eq": None}}}]},
        "min_score": 0.1,
    },
    "/collections/{name}/documents": {"documents": [{"id": "1", "text": "a cat", "metadata": {"a": 1}}]},
    "/prompts/{name:path}/render": {"variables": {"subject": "a", "body": "b"}},
}
FIELDS: Final = (
    *(
        "type",
        "status",
        "key",
        "source",
        "id",
        "parent",
        "since",
        "until",
        "limit",
        "cursor",
        "reason",
        "ids",
        "dry_run",
    ),
    *("name", "next", "token", "access_token", "", "\0", "type[]", "specversion", "subject", "time", "dueat", "data"),
    *("traceparent", "datacontenttype", "dataschema", "partitionkey", "data_base64", "ext", "from", "vector", "filter"),
)
MOMENTS: Final = (
    *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-14:00", "2026-02-30T00:00:00Z", "1e400", "-1"),
    *("2026-03-01T24:00:00Z", "2026-03-01T12:00:60Z", "2026-03-01t12:00:00z", "2026-03-01T12:00:00+99:99", "now"),
    *("0000-00-00T00:00:00Z", "10000-01-01T00:00:00Z", "2026-03-01T12:00:00.1234567890123Z", "2026-03-01"),
)
TEXTS: Final = (
    *(
        "",
        " ",
        "\0",
        "\x1b[2J",
        "\ud800",
        "\U0010ffff",
        "\ufeff",
        "\u202e",
        "a" * 300,
        "é" * 1_100,
        "null",
        "../../etc",
    ),
    *("%00", "%", "%zz", "'; drop table events; --", "<script>", "{{7*7}}", "tickets/classify@" + "9" * 4_300, "-0"),
    *("tickets/classify", "tickets", "ticket.opened", "0" * 4_300, "9" * 4_301, "9223372036854775808", "∞", "٣"),
)
QUERIES: Final = (
    *(
        b"limit=500&status=queued",
        b"type=message.labelled&since=2026-01-01T00:00:00Z",
        b"cursor=" + b"f" * 32,
        b"key=k",
    ),
    *(
        b"since=0001-01-01T00:00:00Z&until=9999-12-31T23:59:59Z",
        b"limit=1&source=/http",
        b"reason=rejected&dry_run=true",
    ),
    *(b"ids=0197b2c4-5d3e-7c1a-9f60-3a52d7c81e44", b"type=a&type=b", b"&&&=&", b"limit=1%00", b"next=//evil.example"),
)
NUMBERS: Final = (
    *(b"0", b"-0", b"1.0", b"1e400", b"-1e400", b"1e-400", b"9" * 4_300, b"-" + b"9" * 4_301, b"9223372036854775808"),
    *(b"18446744073709551616", b"0.1e1", b"01", b"+1", b".5", b"0x10", b"NaN", b"Infinity", b"1_000", b"-", b"1e"),
)
LITERALS: Final = (b"null", b"true", b"false", b"", b"undefined", b"{", b"]", b'"', b'"\\ud800"', b'"\\u0000"', b"'a'")
WHOLES: Final = (
    *(b"", b"\0", b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"a":' * 70 + b"1" + b"}" * 70, b"{}{}", b"\xff\xfe{\0}\0"),
    *(b"[]", b"{}", b"[[]]", b"null", b"\n\n{}\n\n", b"{}\n{}", b"[" + b"{}," * 2_000 + b"{}]", b'{"a":1,"a":2}'),
    *(
        b"9" * 100_000,
        b'"' + b"a" * 1_100_000 + b'"',
        b"key=cb_x&next=//evil",
        b"%",
        b"\x1f\x8b\x08",
        b"{" + b" " * 70_000,
    ),
)
MEDIA: Final = (
    *("application/json", "application/json", "application/json; charset=utf-8", "application/cloudevents+json"),
    *("application/cloudevents-batch+json", "application/x-ndjson", "application/x-www-form-urlencoded", "text/plain"),
    *(
        "",
        "json",
        "application/json;charset=utf-16",
        "multipart/form-data; boundary=",
        "*/*",
        "Application/JSON",
        ";" * 99,
    ),
)
HEADERS: Final = (
    *("Idempotency-Key", "Last-Event-ID", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Host", "Origin"),
    *(
        "Sec-Fetch-Site",
        "Cookie",
        "Authorization",
        "Accept",
        "Accept-Encoding",
        "Content-Encoding",
        "Range",
        "If-None-Match",
    ),
    *("traceparent", "Prefer", "Expect", "Upgrade", "ce-specversion", "ce-id", "WebHook-Request-Origin", "Connection"),
    *(
        "If-Modified-Since",
        "TE",
        "Referer",
        "User-Agent",
        "Forwarded",
        "X-Http-Method-Override",
        "Access-Control-Request-Method",
    ),
)
VALUES: Final = (
    *("", "a", "wss", "https", "http, https", "127.0.0.1", "[::", "cross-site", "same-origin", "null", "100-continue"),
    *("Bearer ", "bearer cb_", "Basic YTpi", "gzip", "bytes=0-1", "*", "callboard=cs_x", "callboard=\xff", "9" * 4_300),
    *(
        "text/html",
        "application/cloudevents+json",
        "1.0",
        "stream",
        "\xff\xfe",
        "\t",
        '"',
        "00-0-0-0",
        "keep-alive",
        "h2c",
    ),
    *("-1", "NaN", "٣".encode().decode("latin-1"), "a" * 9_000, "%00", "localhost:99999", "a b", "evil.example/"),
)


class Asked(Struct, frozen=True):
    """A request: `path` is the route it was made for."""

    method: str
    path: str
    raw: bytes
    is_spoiled: bool


class Maker:
    """Requests for these methods and paths; `names` are what stands in a route's braces where it shall be found."""

    def __init__(self, routes: Sequence[tuple[str, str]], names: dict[str, str], headers: dict[str, str]) -> None:
        self._routes: Final = sorted(set(routes))
        self.names: Final = names
        self._headers: Final = headers

    def make(self, chance: Random) -> Asked:
        method, path = chance.choice(self._routes)
        if chance.random() < 0.1:
            method = chance.choice(METHODS)
        body = self._body(chance, path) if method in ("POST", "PUT", "DELETE") or chance.random() < 0.1 else b""
        headers = {"Host": "localhost", **self._headers}
        if body:
            headers["Content-Type"] = chance.choice(MEDIA) if chance.random() < 0.2 else MEDIA[0]
        for _ in range(chance.choice((0, 0, 0, 1, 1, 3))):
            headers[chance.choice(HEADERS)] = chance.choice(VALUES) if chance.random() < 0.7 else text_of(chance, 40)
        head = f"{method} ".encode() + self._target(chance, path) + b" HTTP/1.1\r\n"
        for name, value in headers.items():
            head += name.encode() + b": " + value.encode("latin-1", "replace") + b"\r\n"
        raw = head + framed(chance, body)
        is_spoiled = chance.random() < 0.15
        return Asked(method, path, spoiled(chance, raw) if is_spoiled else raw, is_spoiled)

    def _target(self, chance: Random, path: str) -> bytes:
        for name, right in self.names.items():
            if name in path:
                chosen = right if chance.random() < 0.5 else chance.choice(TEXTS)
                path = path.replace(name, quote_from_bytes(chosen.encode("utf-8", "surrogatepass"), safe="/@"))
        target = path.encode()
        if chance.random() < 0.05:
            target += quote_from_bytes(chance.randbytes(9)).encode()
        if chance.random() < 0.15:
            target += b"?" + chance.choice(QUERIES)
        elif chance.random() < 0.2:
            pairs = [
                (chance.choice(FIELDS), chance.choice(chance.choice((TEXTS, MOMENTS, ("1", "500", "dead")))))
                for _ in "ab"
            ]
            query = (
                "=".join(quote_from_bytes(part.encode("utf-8", "surrogatepass")) for part in pair) for pair in pairs
            )
            target += b"?" + "&".join(query).encode()
        return target

    def _body(self, chance: Random, path: str) -> bytes:
        right = BODIES.get(path.rstrip("/"))
        match chance.randrange(6):
            case 0:
                return chance.choice(WHOLES)
            case 1:
                return written(chance, 4)
            case 2 | 3 if right is not None:
                return written_from(chance, right)
            case 4 if isinstance(right, list):
                return b"\n".join(written_from(chance, each) for each in right * chance.choice((1, 1, 40)))
            case 5:
                return spoiled(chance, json.encode(right))
        return json.encode(right)


def framed(chance: Random, body: bytes) -> bytes:
    """The end of a head and the body: by its length, or in chunks."""
    if not body and chance.random() < 0.9:
        return b"\r\n"
    if chance.random() < 0.8:
        return b"Content-Length: %d\r\n\r\n" % len(body) + body
    at = chance.randrange(len(body) + 1)
    pieces = [
        b"%x%s\r\n" % (len(piece), chance.choice((b"", b";a=b"))) + piece + b"\r\n"
        for piece in (body[:at], body[at:])
        if piece
    ]
    return b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(pieces) + b"0\r\n\r\n"


def spoiled(chance: Random, text: bytes) -> bytes:
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(text) + 1)
        put = chance.choice(
            (b"", chance.randbytes(1), chance.randbytes(4), b"\0", b"\r\n", b"\n", b"\xff", text[at : at + 40])
        )
        text = text[:at] + put + text[at + chance.choice((0, 1, 1, 9)) :]
    return text


def text_of(chance: Random, length: int) -> str:
    """Any bytes that a header's value may have."""
    return "".join(chr(each) for each in chance.randbytes(length) if each not in (0, 10, 13)).strip()


def written(chance: Random, depth: int) -> bytes:
    """JSON, or nearly."""
    kinds: list[Callable[[], bytes]] = [
        lambda: chance.choice(NUMBERS),
        lambda: chance.choice(LITERALS),
        lambda: quoted(chance.choice(TEXTS)),
        lambda: quoted(chance.choice(MOMENTS)),
    ]
    if depth:
        kinds += [
            lambda: b"[" + b",".join(written(chance, depth - 1) for _ in range(chance.randrange(4))) + b"]",
            lambda: b"{" + b",".join(member(chance, depth - 1) for _ in range(chance.randrange(5))) + b"}",
        ]
    return chance.choice(kinds)()


def member(chance: Random, depth: int) -> bytes:
    return quoted(chance.choice(chance.choice((FIELDS, TEXTS)))) + b":" + written(chance, depth)


def written_from(chance: Random, right: Any) -> bytes:
    """What is right, with a part of it written in another way, or one more."""
    if isinstance(right, dict):
        members = [
            quoted(name) + b":" + (written(chance, 2) if chance.random() < 0.2 else written_from(chance, value))
            for name, value in right.items()
        ]
        more = [member(chance, 2)] if chance.random() < 0.4 else []
        return b"{" + b",".join(members + more) + b"}"
    if isinstance(right, list):
        return b"[" + b",".join(written_from(chance, each) for each in right) + b"]"
    return json.encode(right) if chance.random() < 0.85 else written(chance, 1)


def quoted(text: str) -> bytes:
    """As JSON writes it, but for half a surrogate pair: that is written as three bytes, which no UTF-8 has."""
    return b'"' + text.replace("\\", "\\\\").replace('"', '\\"').encode("utf-8", "surrogatepass") + b'"'
