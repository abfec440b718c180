"""Events are found in a package; a decoder, an encoder and a JSON Schema for each."""

from pathlib import Path

import msgspec
import pytest

import schemas.events
from schemas import origin
from schemas.catalog import CatalogError, discover
from tests.workers.kit.packages import package

ORDERS = """
    from typing import Annotated

    from msgspec import Meta, Struct

    from schemas import Event

    class Line(Struct, frozen=True):
        article: str
        pieces: Annotated[int, Meta(ge=1)] = 1

    class _Dated(Event, tag="no event of its own", frozen=True):
        on_day: str

    class Ordered(_Dated, tag="order.placed", frozen=True):
        lines: list[Line]
        note: str | None = None

    class Emptied(Event, tag="cart.emptied", frozen=True):
        pass
"""


def refusal(folder: Path, text: str) -> str:
    with package(folder, {"orders.py": ORDERS, "more.py": text}) as found, pytest.raises(CatalogError) as refused:
        discover(found)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_every_event_is_found_once_where_it_was_written(tmp_path: Path) -> None:
    files = {"a.py": "from HERE.below.orders import Ordered\n", "below/__init__.py": "", "below/orders.py": ORDERS}
    with package(tmp_path, files) as found:
        catalog = discover(found)
        assert {name: kind.struct.__name__ for name, kind in catalog.items()} == {
            "order.placed": "Ordered",
            "cart.emptied": "Emptied",
        }
        assert catalog["order.placed"].struct.__module__ == f"{found.__name__}.below.orders"


def test_what_is_stored_is_the_data_with_its_defaults_and_without_the_type(tmp_path: Path) -> None:
    with package(tmp_path, {"orders.py": ORDERS}) as found:
        catalog = discover(found)
        ordered, emptied = catalog["order.placed"], catalog["cart.emptied"]
        event = ordered.decode(b'{"lines": [{"article": "x"}], "on_day": "today"}')
        stored = ordered.encode(event)
        assert msgspec.json.decode(stored) == {
            "on_day": "today",
            "lines": [{"article": "x", "pieces": 1}],
            "note": None,
        }
        assert ordered.decode(stored) == event
        assert emptied.encode(emptied.decode(b"{}")) == b"{}"


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b'{"on_day": "today", "lines": [{"article": 1}]}', "$.lines[0].article"),
        (b'{"on_day": "today", "lines": [{"article": "x", "pieces": 0}]}', "$.lines[0].pieces"),
        (b'{"on_day": "today", "lines": [], "colour": "red"}', "colour"),
        (b'{"lines": []}', "on_day"),
        (b'{"$type": "cart.emptied", "on_day": "today", "lines": []}', "$type"),
    ],
)
def test_data_that_does_not_fit_is_refused_with_its_path(tmp_path: Path, data: bytes, path: str) -> None:
    with package(tmp_path, {"orders.py": ORDERS}) as found, pytest.raises(msgspec.ValidationError) as refused:
        discover(found)["order.placed"].decode(data)
    assert path in str(refused.value)


def test_two_events_of_one_type_are_named_with_their_places(tmp_path: Path) -> None:
    message = refusal(
        tmp_path,
        """
        from schemas import Event

        class Again(Event, tag="order.placed", frozen=True):
            pass
        """,
    )
    assert ".more.Again and user_code_" in message
    assert '.orders.Ordered both declare "order.placed". Rename one.' in message


@pytest.mark.parametrize("tag", ["", "tag=7, "])
def test_an_event_without_a_type_is_refused_by_name(tmp_path: Path, tag: str) -> None:
    message = refusal(tmp_path, f"from schemas import Event\n\nclass Nameless(Event, {tag}frozen=True):\n    pass\n")
    assert '.more.Nameless names no type. Write it behind Event: tag="…".' in message


def test_the_schema_says_what_data_may_be_and_nothing_of_the_tag(tmp_path: Path) -> None:
    with package(tmp_path, {"orders.py": ORDERS}) as found:
        schema = discover(found)["order.placed"].schema()
    assert (schema["title"], schema["type"], schema["additionalProperties"]) == ("Ordered", "object", False)
    assert schema["properties"].keys() == {"on_day", "lines", "note"}
    assert sorted(schema["required"]) == ["lines", "on_day"]
    assert schema["properties"]["lines"] == {"type": "array", "items": {"$ref": "#/$defs/Line"}}
    assert schema["$defs"]["Line"]["properties"]["pieces"]["minimum"] == 1


def test_every_event_of_the_project_has_a_schema() -> None:
    catalog = discover(schemas.events)
    assert {"ticket.opened", "message.labelled"} <= catalog.keys()
    assert all("$type" not in str(kind.schema()) for kind in catalog.values())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a = 1\ndef broken(:\n", "more.py:2 can't be loaded: SyntaxError: invalid syntax"),
        ("if True:\na = 1\n", "more.py:2 can't be loaded: IndentationError: expected an indented block"),
        ("import nothing_there\n", "more.py:1 can't be loaded: ModuleNotFoundError: No module named 'nothing_there'"),
        (
            "import os\nos.nothing()\n",
            "more.py:2 can't be loaded: AttributeError: module 'os' has no attribute 'nothing'",
        ),
        ("raise SystemExit\n", "more.py:1 can't be loaded: SystemExit"),
        ("import json\njson.loads('[')\n", "more.py:2 can't be loaded: JSONDecodeError: "),
        ("raise ValueError('one\\ntwo')\n", "more.py:1 can't be loaded: ValueError: one"),
        ("assert not 'all is well'\n", "more.py:1 can't be loaded: AssertionError"),
    ],
)
def test_a_file_that_can_not_be_loaded_is_a_sentence_with_its_line(
    text: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the folder were that of the product."""
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    assert sentence in refusal(tmp_path, text)


def test_so_is_one_that_another_file_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    files = {"a.py": "from HERE import z\n", "z.py": "\n1 / 0\n"}
    with package(tmp_path, files) as found, pytest.raises(CatalogError) as refused:
        discover(found)
    assert str(refused.value).startswith(f"{found.__name__}/z.py:2 can't be loaded: ZeroDivisionError")
