"""The envelope: what is taken, what is kept of it, and what is refused with the path of the field."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from msgspec import Meta, Struct

from schemas import Event
from schemas.catalog import EventType
from schemas.envelope import EXTENSIONS_MAX, Envelope, Incoming, attributes_of, read
from schemas.text import DEPTH_MAX, BadEvent


class Noted(Event, tag="noted", frozen=True):
    """Anything at all, in `what`."""

    what: Any = None


class Item(Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(max_length=10)]
    amount: float = 1.0


class Bought(Event, tag="bought", frozen=True):
    items: list[Item]


CATALOG = {
    kind: EventType(kind, struct, msgspec.json.Decoder(struct))
    for kind, struct in (("noted", Noted), ("bought", Bought))
}
SHOWN = ("status", "attempts", "run", "worker", "pipeline", "result", "error", "calls", "timeline")
VALID: dict[str, Any] = {"type": "bought", "data": {"items": [{"name": "nail"}]}}

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
NUMBERS = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXT
DOCUMENTS = st.recursive(LEAVES, lambda below: st.lists(below, max_size=4) | st.dictionaries(TEXT, below, max_size=4))


def take(body: bytes | dict[str, Any]) -> Incoming:
    return read(body if isinstance(body, bytes) else json.dumps(body).encode(), CATALOG, source="/here")


def refused(body: bytes | dict[str, Any]) -> BadEvent:
    with pytest.raises(BadEvent) as found:
        take(body)
    return found.value


def shown(event: Incoming) -> dict[str, Any]:
    """As it is read back from its row."""
    row = {name: getattr(event, name) for name in ("id", "source", "type", "partitionkey")}
    return attributes_of({**row, "attributes": msgspec.json.encode(event.attributes)})


def test_the_least_that_is_an_event() -> None:
    event = take({"type": "noted"})
    assert (event.type, event.source, event.id, event.tenant) == ("noted", "/here", str(event.event_id), "default")
    assert (event.partitionkey, event.due_at, event.data) == (None, None, b'{"what":null}')
    assert read(b'{"type":"noted"}', CATALOG, source="/here", default_id="given").id == "given"


def test_every_attribute_is_kept_and_shown_again() -> None:
    said: dict[str, Any] = {
        "specversion": "1.0",
        "id": "17",
        "source": "/mail",
        "type": "noted",
        "subject": "s",
        "partitionkey": "k",
        "time": "2026-03-01T12:00:00Z",
        "dueat": "2026-03-02T12:00:00+02:00",
        "dataschema": "urn:s",
        "datacontenttype": "application/cloudevents+json; charset=utf-8",
        "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
        "colour": "red",
        "priority": 7,
        "urgent": True,
        "x2": "",
    }
    event = take({**said, "data": {"what": 1}})
    assert (event.id, event.source, event.partitionkey) == ("17", "/mail", "k")
    assert event.due_at == datetime(2026, 3, 2, 10, tzinfo=UTC)
    told = {name: value for name, value in shown(event).items() if name not in ("time", "dueat")}
    assert told == {name: value for name, value in said.items() if name not in ("time", "dueat")}
    assert shown(event)["time"] == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert shown(event)["dueat"] == datetime(2026, 3, 2, 12, tzinfo=timezone(timedelta(hours=2)))


def test_null_is_as_good_as_not_there() -> None:
    nulls = dict.fromkeys(("id", "source", "subject", "time", "partitionkey", "dueat", "traceparent", "colour"))
    event = take({**nulls, "type": "noted"})
    assert (event.source, event.id, event.due_at, event.partitionkey) == ("/here", str(event.event_id), None, None)
    assert shown(event).keys() == {"specversion", "id", "source", "type", "datacontenttype"}


@pytest.mark.parametrize(
    ("change", "status", "path"),
    [
        ({"type": "unheard.of"}, 422, "$.type"),
        ({"type": 7}, 422, "$.type"),
        ({"type": None}, 422, "$.type"),
        ({"type": ""}, 422, "$.type"),
        ({"specversion": "0.3"}, 422, "$.specversion"),
        ({"id": ""}, 422, "$.id"),
        ({"id": "x" * 201}, 422, "$.id"),
        ({"source": 1}, 422, "$.source"),
        ({"partitionkey": "x" * 201}, 422, "$.partitionkey"),
        ({"time": "yesterday"}, 422, "$.time"),
        ({"time": "2026-03-01T12:00:00"}, 422, "$.time"),
        ({"dueat": "9999-12-31T23:59:59-01:00"}, 422, "$.dueat"),
        ({"datacontenttype": "text/plain"}, 422, "$.datacontenttype"),
        ({"traceparent": "00-zz"}, 422, "$.traceparent"),
        ({"Colour": "red"}, 422, "$.Colour"),
        ({"co-lour": "red"}, 422, "$.co-lour"),
        ({"x" * 21: "red"}, 422, f"$.{'x' * 21}"),
        ({"data_base64": "aGk="}, 422, "$.data_base64"),
        ({"colour": {"is": "red"}}, 422, "$.colour"),
        ({"colour": 1.5}, 422, "$.colour"),
        ({"colour": "x" * 2001}, 422, "$.colour"),
        ({"data": None}, 422, "$.data"),
        ({"data": []}, 422, "$.data"),
        ({"data": {}}, 422, "$.data.items"),
        ({"data": {"items": [{"name": "nail"}, {"name": 1}]}}, 422, "$.data.items[1].name"),
        ({"data": {"items": [{"name": "x" * 11}]}}, 422, "$.data.items[0].name"),
        ({"data": {"items": [{"name": "nail", "size": 3}]}}, 422, "$.data.items[0].size"),
        ({"data": {"items": [], "more": 1}}, 422, "$.data.more"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_path(change: dict[str, Any], status: int, path: str) -> None:
    error = refused({**VALID, **change})
    assert (error.status, error.path, error.reason) == (status, path, "invalid")
    assert error.message
    assert "`$" not in error.message


def test_an_event_without_a_type_is_refused() -> None:
    assert (refused(b"{}").status, refused(b"{}").path) == (422, "$.type")
    assert "type" in refused(b"{}").message


@pytest.mark.parametrize(
    "body", [b"", b" ", b"null", b"[]", b"7", b'"noted"', b"{", b'{"type":"noted"}}', b'{"type":"noted",}']
)
def test_what_is_no_object_is_refused(body: bytes) -> None:
    assert refused(body).status in (400, 422)


DATA = '{"type":"noted","data":{"what":%s}}'
EXTENSION = '{"type":"noted","colour":%s}'


@pytest.mark.parametrize(
    ("body", "status", "path"),
    [
        (DATA % '{"a":["\\u0000"]}', 422, "$.data.what.a[0]"),
        (DATA % '"\\ud800"', 400, "$.data.what"),
        (DATA % "NaN", 400, "$.data.what"),
        (DATA % "[0,-Infinity]", 400, "$.data.what[1]"),
        (DATA % "1e400", 422, "$.data.what"),
        (DATA % "01", 400, "$"),
        (DATA % "'a'", 400, "$"),
        (EXTENSION % '"\\u0000"', 422, "$.colour"),
        (EXTENSION % '"\\ud800"', 400, "$.colour"),
        (EXTENSION % "NaN", 400, "$.colour"),
    ],
)
def test_what_no_text_or_number_can_be_is_refused_with_its_path(body: str, status: int, path: str) -> None:
    error = refused(body.encode())
    assert (error.status, error.path) == (status, path)


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_other_codings_than_plain_utf8_are_refused(coding: str) -> None:
    assert refused('{"type":"noted","data":{"what":"ä"}}'.encode(coding)).status in (400, 422)


def test_of_two_equal_names_the_last_counts_everywhere() -> None:
    event = take(b'{"type":"bought","id":"1","type":"noted","id":"2","data":{"what":1},"data":{"what":2}}')
    assert (event.type, event.id, event.data) == ("noted", "2", b'{"what":2}')
    event = take(b'{"colour":"red","type":"bought","id":"1","type":"noted","id":"2","colour":"blue"}')
    assert (event.type, event.id, event.attributes.extensions) == ("noted", "2", {"colour": "blue"})


@pytest.mark.parametrize("colour", ["", '"colour":1,'])
def test_64_levels_are_taken_and_65_are_not(colour: str) -> None:
    def nested(levels: int) -> bytes:
        return f'{{{colour}"type":"noted","data":{{"what":{"[" * (levels - 2)}{"]" * (levels - 2)}}}}}'.encode()

    assert take(nested(DEPTH_MAX)).data.count(b"[") == DEPTH_MAX - 2
    assert (refused(nested(DEPTH_MAX + 1)).status, refused(nested(100_000)).status) == (400, 400)


@settings(deadline=None)
@given(
    DOCUMENTS, st.dictionaries(st.from_regex(r"\Ax[a-z0-9]{0,19}\Z"), TEXT | st.booleans() | st.integers(), max_size=3)
)
@example([[]], {})
def test_any_document_is_kept_as_it_was_said(document: Any, extensions: dict[str, Any]) -> None:
    body = {"type": "noted", **extensions, "data": {"what": document}}
    event = take(json.dumps(body, ensure_ascii=False).encode())
    assert json.loads(event.data) == {"what": document}
    assert event.attributes.extensions == extensions
    again = take(b'{"type":"noted","data":' + event.data + b"}")
    assert again.data == event.data


@settings(deadline=None)
@given(st.from_regex(r"\A[a-z0-9]{0,22}\Z") | st.text(max_size=22))
@example("a" * 20)
@example("a" * 21)
@example("é")
def test_an_extension_has_a_name_that_cloudevents_allows(name: str) -> None:
    assume(name not in Envelope.__struct_fields__)
    allowed = 0 < len(name) <= 20 and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789")
    body = {**VALID, name: "red"}
    if allowed and name not in SHOWN:
        assert take(body).attributes.extensions == {name: "red"}
    else:
        assert refused(body).status in (400, 422)


@pytest.mark.parametrize(
    ("extensions", "taken"),
    [
        ({f"x{n}": 1 for n in range(EXTENSIONS_MAX)}, True),
        ({f"x{n}": 1 for n in range(EXTENSIONS_MAX + 1)}, False),
        ({f"x{n}": "a" * 1_990 for n in range(4)}, True),
        ({f"x{n}": "a" * 1_990 for n in range(5)}, False),
        ({f"x{n}": "\u00e9" * 1_990 for n in range(3)}, False),
    ],
)
def test_extensions_are_few_and_short(extensions: dict[str, Any], taken: bool) -> None:
    body = {**VALID, **extensions}
    if taken:
        assert take(body).attributes.extensions == extensions
    else:
        error = refused(body)
        assert (error.status, "Put what is large into `data`" in error.message) == (422, True)


@pytest.mark.parametrize("name", SHOWN)
def test_an_extension_can_not_hide_what_the_service_says_of_an_event(name: str) -> None:
    error = refused({**VALID, name: "succeeded"})
    assert (error.status, error.path) == (422, f"$.{name}")


@settings(deadline=None)
@given(st.binary(max_size=200))
@example(b'{"zzz":1,"type":}')
@example(b'{"zzz":"\xff","type":"noted"}')
@example(b'{"type":"noted","data":{"what":"\xff"}}')
@example(b'{"\xff":1}')
@example(b'{"' + b"[" * 3000)
def test_any_bytes_are_an_event_or_bad(body: bytes) -> None:
    sane(body)


@settings(deadline=None)
@given(st.data())
def test_a_damaged_event_is_an_event_or_bad(data: st.DataObject) -> None:
    whole = json.dumps({**VALID, "colour": "red", "time": "2026-03-01T12:00:00Z"}).encode()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 5)))
    pieces = st.binary(max_size=4) | st.sampled_from((b"\\u0000", b"\\ud800", b"[" * 70, b"1e999", b"NaN", b'"', b"\\"))
    sane(whole[:start] + data.draw(pieces) + whole[end:])


def sane(body: bytes) -> None:
    try:
        event = take(body)
    except BadEvent as error:
        assert (error.status in (400, 422), error.path[:1], bool(error.message)) == (True, "$", True)  # noqa: PT017
    else:
        assert event.type in CATALOG
        json.loads(event.data)
        msgspec.json.encode(event.attributes).decode()
