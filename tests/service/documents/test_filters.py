"""Filters mean what a plain reading in Python says they mean, whatever the names and values are."""

from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from operator import ge, gt, le, lt
from typing import Any, Final
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from schemas.text import BadEvent
from service.core.errors import WiringError
from service.core.metrics import Meters
from service.core.servers import open_pool
from service.core.settings import Settings
from service.documents.vectors import Document, Search, Vectors, searching
from workers.kit.handles import RunVectors
from workers.kit.memory import Effects

NAMES: Final = st.sampled_from(
    ["a", "b", 'q"', "b\\", "$", "@.a", "a.b", "ü", "') or true; --", "", "\n", "keyvalue()"]
)
TEXT: Final = st.sampled_from(["", "a", "B", "b", "10", "9", "é", "\U0001f600", "\uffee", '"', "$v0", "2026-01-02"])
NUMBERS: Final = st.integers(-3, 3) | st.sampled_from([0.5, -0.0, 1e300, 2.0, 10**30, 2**63, 5e-324])
ORDERED: Final = TEXT | NUMBERS
SCALARS: Final = ORDERED | st.booleans()
ORDERS: Final = {"lt": lt, "lte": le, "gt": gt, "gte": ge}
COMPARISONS: Final = (
    st.dictionaries(st.sampled_from([*ORDERS]), ORDERED, min_size=1, max_size=2)
    | st.dictionaries(st.sampled_from(["eq", "ne"]), SCALARS, min_size=1, max_size=2)
    | st.fixed_dictionaries({"in": st.lists(SCALARS, max_size=4)})
)
FILTERS: Final[st.SearchStrategy[dict[str, Any]]] = st.recursive(
    st.dictionaries(NAMES, COMPARISONS, min_size=1, max_size=2),
    lambda below: st.dictionaries(
        st.sampled_from(["and", "or", "not"]), st.lists(below, min_size=1, max_size=3), min_size=1, max_size=2
    ),
    max_leaves=6,
)
VALUES: Final = SCALARS | st.none() | st.lists(SCALARS | st.lists(SCALARS, max_size=2), max_size=3)
METADATA: Final = st.dictionaries(NAMES, VALUES | st.dictionaries(NAMES, SCALARS, max_size=2), max_size=4)


def fits(which: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    return all(_holds(name, told, metadata) for name, told in which.items())


def _holds(name: str, told: Any, metadata: Mapping[str, Any]) -> bool:
    match name:
        case "and":
            return all(fits(each, metadata) for each in told)
        case "or":
            return any(fits(each, metadata) for each in told)
        case "not":
            return not any(fits(each, metadata) for each in told)
    value = metadata.get(name)
    items = [_kind(each) for each in (value if isinstance(value, list) else [value])]
    return all(_compares(operator, wanted, items) for operator, wanted in told.items())


def _compares(operator: str, wanted: Any, items: list[tuple[str, Any]]) -> bool:
    match operator:
        case "eq":
            return _kind(wanted) in items
        case "ne":
            return _kind(wanted) not in items
        case "in":
            return any(_kind(each) in items for each in wanted)
    kind, bound = _kind(wanted)
    return any(ORDERS[operator](value, bound) for each, value in items if each == kind)


def _kind(value: Any) -> tuple[str, Any]:
    match value:
        case bool():
            return "bool", value
        case int() | float():
            return "number", Decimal(repr(value))
        case str():
            return "text", value
    return "other", object()


@pytest.fixture
async def vectors(settings: Settings) -> AsyncIterator[Vectors]:
    async with open_pool(settings, "test") as pool:
        yield Vectors(pool, searching(settings, Meters()))


@given(FILTERS, st.lists(METADATA, min_size=1, max_size=8))
@hypothesis_settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_a_filter_is_what_it_says(vectors: Vectors, which: dict[str, Any], metadata: list[Any]) -> None:
    collection = str(uuid4())
    await vectors.upsert(
        "acme", [Document(collection, str(n), "a", [1.0], fields) for n, fields in enumerate(metadata)], "test"
    )
    found, _ = await vectors.search("acme", collection, Search(vector=[1.0], k=100, filter=which))
    assert {each.id for each in found} == {str(n) for n, fields in enumerate(metadata) if fits(which, fields)}


async def test_what_fits_is_deleted_however_much_it_is(vectors: Vectors) -> None:
    many = [Document("many", str(n), "a", [1.0], {"n": n}) for n in range(1_100)]
    await vectors.upsert("acme", many, "test")
    assert await vectors.delete("other", "many", None, {"n": {"gte": 100}}, "test") == 0
    assert await vectors.delete("acme", "many", None, {"n": {"gte": 100}}, "test") == 1_000
    assert len((await vectors.search("acme", "many", Search(vector=[1.0], k=1_000)))[0]) == 100


async def test_a_pipeline_searches_as_http_does(vectors: Vectors) -> None:
    effects = Effects()
    run = RunVectors("acme", "/mail", "recall", vectors, effects)
    run.upsert("notes", "own", "what a model says", {"lang": "en"}, [0.0, 2.0])
    run.upsert("notes", "hashed", "what its words say")
    with pytest.raises(BadEvent, match="a vector's length"):
        run.upsert("notes", "none", "nothing", vector=[0.0, 0.0])
    assert [document.id for document in effects.documents] == ["own", "hashed"]
    await vectors.upsert("acme", effects.documents, "test")
    assert [document.id for document in await run.search("notes", "words", sources=["/mail"])] == ["hashed"]
    assert [document.id for document in await run.search("notes", vector=[1.0, 1.0], where={"lang": {"eq": "en"}})] == [
        "own"
    ]
    assert [document.id for document in await run.search("notes", "model", mode="keyword", min_score=0.01)] == ["own"]
    assert await run.search("notes", "words", sources=["/chat"]) == []
    assert await run.delete("notes", where={"lang": {"eq": "en"}}) == 1
    assert await run.delete("notes", ["hashed", "unknown"]) == 1
    assert await run.delete("notes", ["hashed"], {"lang": {"eq": "en"}}) == 0
    assert [(document.id, document.embedding) for document in effects.documents[2:]] == [
        ("own", None),
        ("hashed", None),
    ]
    with pytest.raises(WiringError, match="Give `ids` or `where`"):
        await run.delete("notes")
