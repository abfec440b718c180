"""What the simulator makes of a JSON Schema decodes as the type that the schema is of."""

import datetime
import decimal
import enum
import itertools
import re
import uuid
from random import Random
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec import Meta, Struct, defstruct

from service.core.errors import CallboardError, WiringError
from workers.models.structured import Shape
from workers.simulator.replies import reply, seed
from workers.simulator.schemas import matching, value


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 9


class Leaf(Struct, frozen=True, tag="leaf"):
    weight: Annotated[float, Meta(gt=0, lt=1)]


class Branch(Struct, frozen=True, tag="branch"):
    left: "Leaf | Branch"
    right: "Leaf | Branch"
    more: "list[Branch]" = []
    parent: "Branch | None" = None


class Row(Struct, frozen=True, array_like=True):
    name: str
    amount: Annotated[int, Meta(ge=-5, lt=0)]
    note: str | None = None


class Point(NamedTuple):
    x: float
    y: float


class Named(TypedDict):
    name: str


NUMBERS = itertools.count()
FINITE = st.floats(-1e6, 1e6).map(lambda number: round(number, 2))
LEAVES: list[Any] = [
    str, int, float, bool, None, bytes, Any, Colour, Level, Leaf, Branch, Row, Point, Named,
    datetime.date, datetime.timedelta, uuid.UUID, decimal.Decimal,
    Annotated[datetime.datetime, Meta(tz=True)],
    Annotated[datetime.time, Meta(tz=True)],
    Annotated[datetime.time, Meta(tz=False)],
    Literal["a", 1, None],
    Annotated[str, Meta(pattern=r"^[A-Z]{2,3}-\d{4}$")],
    Annotated[str, Meta(examples=["en", "de"], pattern="^[a-z]{2}$")],
]  # fmt: skip


def _between(low: Any, high: Any, kind: Any, *, open_low: bool, open_high: bool) -> Any:
    ends = {"gt" if open_low else "ge": low, "lt" if open_high else "le": high}
    return Annotated[kind, Meta(**ends)]


INTS = st.builds(
    lambda low, span, left, right: _between(low, low + span + 2, int, open_low=left, open_high=right),
    st.integers(-(2**40), 2**40), st.integers(0, 50), st.booleans(), st.booleans(),
)  # fmt: skip
FLOATS = st.builds(
    lambda low, span, left, right: _between(low, low + span, float, open_low=left, open_high=right),
    FINITE, st.floats(0.001, 10), st.booleans(), st.booleans(),
)  # fmt: skip
ONE_END = st.builds(
    lambda kind, end, at: Annotated[kind, Meta(**{end: at})],
    st.sampled_from([int, float]), st.sampled_from(["ge", "gt", "le", "lt"]), st.integers(-1000, 1000),
)  # fmt: skip
MULTIPLES = st.builds(
    lambda kind, of, low: Annotated[kind, Meta(multiple_of=of, ge=low)],
    st.sampled_from([int, float]), st.integers(1, 40), st.integers(-100, 100),
)  # fmt: skip
STRINGS = st.builds(
    lambda low, more: Annotated[str, Meta(min_length=low, max_length=low + more)], st.integers(0, 40), st.integers(0, 9)
)
SIMPLE = st.one_of(st.sampled_from(LEAVES), INTS, FLOATS, ONE_END, MULTIPLES, STRINGS)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    size = st.builds(
        lambda low, more: Meta(min_length=low, max_length=low + more), st.integers(0, 4), st.integers(0, 3)
    )
    keys = st.sampled_from([str, Annotated[str, Meta(min_length=3, max_length=5)], Annotated[str, Meta(pattern="^k_")]])
    return st.one_of(
        st.builds(lambda each, meta: Annotated[list[each], meta], inner, size),  # type: ignore[valid-type]
        st.builds(lambda each: list[each], inner),  # type: ignore[valid-type]
        st.builds(lambda each: tuple[each, ...], inner),  # type: ignore[valid-type]
        st.lists(inner, max_size=3).map(lambda each: tuple[tuple(each)]),  # type: ignore[misc]
        st.builds(lambda key, each, meta: Annotated[dict[key, each], meta], keys, inner, size),  # type: ignore[valid-type]
        st.builds(lambda meta: Annotated[set[str], meta], size),
        st.just(frozenset[Literal["a", "b", "c"]]),
        inner.map(lambda each: each | None if isinstance(each, type) else each),
        st.lists(inner, min_size=1, max_size=3).map(_struct),
    )


def _struct(kinds: list[Any]) -> type[Struct]:
    # Two of one name in one schema are more than msgspec can take.
    return defstruct(f"Made{next(NUMBERS)}", [(f"field_{index}", kind) for index, kind in enumerate(kinds)])


STRUCTS = st.lists(st.recursive(SIMPLE, _containers, max_leaves=5), min_size=1, max_size=5).map(_struct)


@settings(deadline=None, max_examples=100)
@given(STRUCTS, st.integers())
def test_every_value_is_one_of_the_type_whose_schema_was_asked(kind: type[Struct], number: int) -> None:
    said = reply(msgspec.json.schema(kind), seed(number))
    assert said == reply(msgspec.json.schema(kind), seed(number))
    assert isinstance(msgspec.json.decode(said, type=kind), kind)


@settings(deadline=None, max_examples=60)
@given(STRUCTS, st.integers())
def test_so_is_one_made_from_the_strict_schema_that_providers_get(kind: type[Struct], number: int) -> None:
    try:
        shape = Shape(kind)
    except WiringError:  # strict mode can't say it
        assume(False)
    assert shape.schema
    assert isinstance(shape.decode(reply(shape.schema.body, seed(number))), kind)


@pytest.mark.parametrize("number", range(40))
def test_a_recursive_type_comes_to_an_end(number: int) -> None:
    said = reply(msgspec.json.schema(Branch), seed(number))
    assert isinstance(msgspec.json.decode(said, type=Branch), Branch)
    assert len(said) < 20_000


ENDLESS = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "required": ["a"]}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/A", "$defs": {"A": ENDLESS}},
        {"$ref": "#/$defs/A"},
        {"type": "integer", "minimum": 2, "maximum": 1},
        {"type": "string", "pattern": "("},
        {"type": "array", "items": [1]},
        {"anyOf": []},
        {"anyOf": 1},
        {"description": 7},
        {"properties": 7, "type": "object"},
    ],
)
def test_a_schema_that_nothing_fits_is_told(schema: dict[str, Any]) -> None:
    with pytest.raises(CallboardError, match="can't meet this schema"):
        value(schema, Random(0))


def test_a_recursion_that_may_be_left_out_ends() -> None:
    made = value({"$ref": "#/$defs/A", "$defs": {"A": ENDLESS | {"required": []}}}, Random(0))
    assert set(made) == {"a"}


PATTERNS = [
    r"^[a-z]{2}$", r"\d+", r"^\+?[1-9]\d{1,14}$", r"^(yes|no|maybe)$", r"^[^@\s]+@[^@\s]+\.[a-z]{2,}$", r"^\w+-\W$",
    r"^(?:ab)*c?$", r"^(a|b)\1$", r"^.{3,5}$", r"[^a-z]", r"^[А-Я]{3}$", r"^a{7}b+?\s\S\D$", "", r"^INV-(?P<n>\d{3})$",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_are_met(pattern: str) -> None:
    for number in range(30):
        assert re.search(pattern, matching(pattern, Random(number)))


def test_a_pattern_that_can_not_be_met_is_a_text_all_the_same() -> None:
    schema = {"type": "object", "properties": {"code": {"type": "string", "pattern": "^(?=a)b$", "maxLength": 4}}}
    assert msgspec.json.decode(reply(schema, seed(1))) == {"code": "simu"}
