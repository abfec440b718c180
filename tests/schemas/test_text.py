"""What is refused before anything is decoded: too deep, NUL, no UTF-8; and where the trouble sits."""

import json
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.text import DEPTH_MAX, BadEvent, check, find_trouble, storable

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
DOCUMENTS = st.recursive(LEAVES, lambda below: st.lists(below, max_size=4) | st.dictionaries(TEXT, below, max_size=4))


def depth(value: object) -> int:
    match value:
        case list():
            return 1 + max(map(depth, value), default=0)
        case dict():
            return 1 + max(map(depth, value.values()), default=0)
    return 0


def nested(levels: int, kind: str) -> bytes:
    opening, closing = {"list": ("[", "]"), "dict": ('{"a":', "}"), "mixed": ('[{"a":', "}]")}[kind]
    step = opening.count("[") + opening.count("{")
    return (opening * (levels // step) + "1" + closing * (levels // step)).encode()


def refused(body: bytes) -> BadEvent:
    with pytest.raises(BadEvent) as found:
        check(body)
    return found.value


@pytest.mark.parametrize("kind", ["list", "dict", "mixed"])
def test_64_levels_are_let_in_and_65_are_not(kind: str) -> None:
    check(nested(DEPTH_MAX, kind))
    error = refused(nested(DEPTH_MAX + (2 if kind == "mixed" else 1), kind))
    assert (error.status, error.message) == (400, "nested deeper than 64 levels")


def test_brackets_in_text_and_side_by_side_are_no_depth() -> None:
    check(json.dumps({"text": "[" * 500, 'a"[': '\\"{{' * 100, "many": [[]] * 500}).encode())
    assert refused(json.dumps({"text": "]" * 500}).encode()[:-1] + b',"a":' + nested(64, "list") + b"}").status == 400


@settings(deadline=None)
@given(st.integers(1, 130), DOCUMENTS, TEXT)
def test_depth_is_counted_as_a_reader_counts_it(wrapped: int, inner: object, name: str) -> None:
    value: object = [[]] * 70 + [inner]
    for level in range(wrapped):
        value = {name: value} if level % 2 else [value, name]
    body = json.dumps(value, ensure_ascii=False).replace("\\u0000", "0").encode()
    if depth(value) > DEPTH_MAX:
        assert refused(body).status == 400
    else:
        check(body)


@settings(deadline=None)
@given(st.binary(max_size=300) | st.text('[]{}"\\,:0u', max_size=300).map(str.encode))
def test_any_bytes_are_let_in_or_refused(body: bytes) -> None:
    with suppress(BadEvent):
        check(body)


def test_a_deep_flood_is_refused_in_no_time() -> None:
    for flood in (b"[" * 1_000_000, b'{"a":' * 200_000, b"[]," * 330_000, b'"\\' * 500_000, b'["' * 500_000):
        begun = time.process_time()
        with suppress(BadEvent):
            check(flood)
        assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b'{"a": "x\\u0000"}', "$.a"),
        (b'{"a": [1, {"b": "\\u0000"}]}', "$.a[1].b"),
        (b'{"a\\u0000": 1}', "$"),
        (b'["\\\\\\u0000"]', "$[0]"),
    ],
)
def test_nul_is_refused_where_it_stands(body: bytes, path: str) -> None:
    error = refused(body)
    assert (error.status, error.path) == (422, path)
    assert "NUL" in error.message


def test_what_only_looks_like_nul_is_let_in() -> None:
    check(b'{"a": "\\\\u0000", "b": "u0000"}')


@pytest.mark.parametrize("body", [b'{"a": "\xff"}', b"\xff\xfe{\x00}\x00", "{}".encode("utf-32"), b'"\xed\xa0\x80"'])
def test_what_is_no_utf8_is_refused_with_the_place(body: bytes) -> None:
    error = refused(body)
    assert error.status == 400
    assert "not UTF-8" in error.message
    assert "at byte" in error.message


@pytest.mark.parametrize(
    ("body", "path", "message"),
    [
        (b'{"a": NaN}', "$.a", "not a finite number"),
        (b'{"a": [0, -Infinity]}', "$.a[1]", "not a finite number"),
        (b"[1e400]", "$[0]", "not a finite number"),
        (b'{"a": {"b": "\\ud800"}}', "$.a.b", "half of a surrogate pair"),
        (b'{"a": "\\udc00\\ud800"}', "$.a", "half of a surrogate pair"),
        (b'{"\\ud800": 1}', "$", "half of a surrogate pair"),
    ],
)
def test_the_slow_second_look_finds_the_field(body: bytes, path: str, message: str) -> None:
    trouble = find_trouble(body)
    assert trouble is not None
    assert trouble.path == path
    assert message in trouble.message


@settings(deadline=None)
@given(DOCUMENTS.filter(lambda value: "\\u0000" not in json.dumps(value)))
def test_sound_documents_have_no_trouble(value: object) -> None:
    assert find_trouble(json.dumps(value).encode()) is None


@given(st.text(st.characters(exclude_categories=())), st.none() | st.integers(0, 9))
def test_any_text_becomes_storable_and_is_left_alone_where_it_is(text: str, length_max: int | None) -> None:
    told = storable(text, length_max)
    assert len(told) == len(text[:length_max])
    assert "\0" not in told.encode().decode(), "and UTF-8 can say it"
    assert [(a, b) for a, b in zip(text, told, strict=False) if a != b and b != "\ufffd"] == []
    assert storable(told) == told
