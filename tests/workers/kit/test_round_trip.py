"""What a step gives goes on as a replay would give it, or fails at the step with its path."""

import enum
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, NamedTuple, NoReturn, TypedDict
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Meta, Raw, Struct, json

from schemas import Event
from service.core.errors import WiringError
from tests.workers.kit.runs import Memory, open_run, with_deps
from workers.compiler.binding import bind
from workers.compiler.plan import execute
from workers.kit import Run, Stop
from workers.kit.flow import Node
from workers.kit.memory import Facts
from workers.kit.ordered import ordered
from workers.kit.round_trip import Unstorable
from workers.kit.run import as_step, step


class Job(Event, tag="job", frozen=True):
    n: int = 0


class Score(Struct, frozen=True):
    n: int
    share: float = 0.0


class Reviewed(Score, frozen=True):
    by: str = "ann"


class Same(Score, frozen=True):
    def __eq__(self, other: object) -> bool:
        raise AssertionError("user code is not asked")

    def __hash__(self) -> int:
        return self.n


class Short(Struct, frozen=True):
    text: Annotated[str, Meta(max_length=3)]
    inner: list[Score] = []


class Cat(Struct, frozen=True, tag=True):
    lives: int


class Dog(Struct, frozen=True, tag=True):
    name: str


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Point:
    x: float
    tags: frozenset[str] = frozenset()


class Labels(TypedDict, total=False):
    name: str
    n: int


class Pair(NamedTuple):
    left: int
    right: str


def returning(kind: Any, value: Any) -> Node:
    """A node that says it returns `kind`, and returns `value`."""

    async def node() -> Any:
        return value

    node.__annotations__["return"] = kind
    return node


@pytest.fixture
async def run() -> AsyncIterator[Run]:
    async with open_run() as opened:
        yield opened


async def both_ways(run: Run, kind: Any, value: Any) -> tuple[Any, Any]:
    """What goes on in a first try, and what a replay of it finds."""
    memory, node = Memory(), returning(kind, value)
    one = with_deps(run, facts=Facts(), keep=memory.keep)
    first = await step(as_step(one, "node"), node, [])
    await one.outside()
    other = with_deps(run, facts=Facts(journal=memory.entries))
    again = await step(as_step(other, "node"), node, [])
    assert [each.state for each in other._deps.facts.steps] == ["replayed"]
    return first, again


def shape(value: Any) -> Any:
    """Compared without its own `__eq__`: its type, and its JSON with sets in order."""
    if isinstance(value, Stop):
        return (Stop, shape(value.result))
    if isinstance(value, list | tuple):
        return (type(value), [shape(item) for item in value])
    if isinstance(value, dict):
        return (dict, [(shape(name), shape(item)) for name, item in value.items()])
    return (type(value), json.encode(ordered(value)))


SURVIVES: list[tuple[Any, Any, Any]] = [
    (str, "a\0ü\U0001f600", "a\0ü\U0001f600"),
    (int, 2**80, 2**80),
    (int, Level.HIGH, 2),
    (float, 3, 3.0),
    (bool, True, True),
    (None, None, None),
    (bytes, b"\0\xff", b"\0\xff"),
    (Decimal, Decimal("1.10"), Decimal("1.10")),
    (datetime, datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=2))), ...),
    (datetime, datetime(2026, 1, 2, tzinfo=UTC), ...),
    (date, date(2026, 1, 2), ...),
    (timedelta, timedelta(days=1, microseconds=1), ...),
    (UUID, UUID(int=7), ...),
    (Mood, Mood.BAD, Mood.BAD),
    (list[int], (1, 2), [1, 2]),
    (tuple[int, str], (1, "a"), (1, "a")),
    (Pair, Pair(1, "a"), Pair(1, "a")),
    (set[str], {"alpha", "beta", "gamma", "delta"}, ...),
    (frozenset[Mood], frozenset(Mood), ...),
    (set[tuple[int, str]], {(1, "b"), (2, "a")}, ...),
    (dict[str, float], {"z": 1, "a": 2}, {"z": 1.0, "a": 2.0}),
    (dict[int, str], {2: "b", 1: "a"}, ...),
    (Score, Score(1, 1), Score(1, 1.0)),
    (Point, Point(1.5, frozenset({"a", "b"})), ...),
    (Labels, {"n": 1}, {"n": 1}),
    (Cat | Dog, Dog("rex"), Dog("rex")),
    (Score | None, None, None),
    (Score | None, Score(1), Score(1)),
    (float | None, float("nan"), None),  # JSON has no NaN: it goes on as what the journal gives back
    (Any, Score(1), {"n": 1, "share": 0.0}),
    (Any, (1, {"a"}), [1, ["a"]]),
    (list[Any], [Score(1)], [{"n": 1, "share": 0.0}]),
    (object, {"a": 1}, {"a": 1}),
    (Raw, Raw(b'{"a":1}'), Raw(b'{"a":1}')),
    (Score | Stop, Stop(Score(1)), Stop({"n": 1, "share": 0.0})),
    (Stop, Stop((1, 2)), Stop([1, 2])),
    (Score | Stop, Score(1), Score(1)),
]


@pytest.mark.parametrize(("kind", "value", "goes_on"), SURVIVES, ids=map(str, range(len(SURVIVES))))
async def test_what_goes_on_is_what_a_replay_finds(run: Run, kind: Any, value: Any, goes_on: Any) -> None:
    first, again = await both_ways(run, kind, value)
    assert shape(first) == shape(again)
    assert shape(first) == shape(value if goes_on is ... else goes_on)


FAILS: list[tuple[Any, Any, str]] = [
    (Score, Reviewed(1), "this is no field of its declared type - at `$.by`"),
    (list[Score], [Score(1), Reviewed(1)], "at `$[1].by`"),
    (dict[str, Score], {"a": Reviewed(1)}, "at `$.a.by`"),
    (Score, {"n": 1}, "a default would be added - at `$.share`"),
    (Score, Score("one"), "Expected `int`, got `str` - at `$.n`"),  # type: ignore[arg-type]
    (Score, Score(1, float("inf")), "Expected `float`, got `null` - at `$.share`"),
    (int, True, "Expected `int`, got `bool`"),
    (float, 2**53 + 1, "9007199254740992.0 for 9007199254740993 - at `$`"),
    (set[int], [1, 1], "1 elements of 2 - at `$`"),
    (Short, Short("long"), "length <= 3 - at `$.text`"),
    (Short, Short("abc", [Reviewed(1)]), "at `$.inner[0].by`"),
    (None, 1, "Expected `null`, got `int`"),
    (str, None, "Expected `str`, got `null`"),
    (Any, {"a": [1, object()]}, "Encoding objects of type object is unsupported - at `$.a[1]`"),
    (Short, Short("caf\udce9"), "surrogates not allowed - at `$.text`"),
    (Point, Point(1, frozenset({"\udce9"})), "surrogates not allowed - at `$.tags[0]`"),
    (Any, {object(): 1}, "at `$`"),
]


@pytest.mark.parametrize(("kind", "value", "message"), FAILS, ids=[case[2] for case in FAILS])
async def test_what_does_not_survive_fails_with_its_path(run: Run, kind: Any, value: Any, message: str) -> None:
    with pytest.raises(Unstorable) as failed:
        await both_ways(run, kind, value)
    assert str(failed.value).startswith("the result of step node ")
    assert message in str(failed.value)


async def test_no_equality_of_the_users_is_asked(run: Run) -> None:
    first, _ = await both_ways(run, Score, Same(1))
    assert type(first) is Score


JSONABLE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.sampled_from([*Mood, *Level])
    | st.datetimes(timezones=st.just(UTC)) | st.decimals() | st.uuids() | st.builds(Score, st.integers(), st.floats())
    | st.builds(Reviewed, st.integers(), st.floats(), st.text()) | st.builds(Cat, st.integers())
    | st.builds(Point, st.floats() | st.integers(), st.frozensets(st.text(alphabet=st.characters()))),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=4)
    | st.frozensets(st.text() | st.integers() | st.sampled_from(Mood), max_size=4) | st.builds(Stop, inner),
    max_leaves=8,
)  # fmt: skip
KINDS = st.sampled_from(
    [
        *(Any, str, int, float, bool, None, bytes, Decimal, datetime, UUID, Mood, Level, Score, Reviewed, Short, Point),
        *(list[Any], list[float], list[Score], tuple[Any, ...], set[str], dict[str, Any], dict[str, Score | None]),
        *(Cat | Dog, Score | None, int | str | None, float | None, Labels, Pair, Score | Stop, frozenset[Mood]),
    ]
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=KINDS, value=JSONABLE)
async def test_any_value_goes_on_equal_or_fails_with_a_path(run: Run, kind: Any, value: Any) -> None:
    failed = ""
    first = again = None
    try:
        first, again = await both_ways(run, kind, value)
    except Unstorable as error:
        failed = str(error)
    assert not failed or "`$" in failed, failed
    assert shape(first) == shape(again)


async def _undeclared(event: Job):  # type: ignore[no-untyped-def]
    return event.n


async def _untagged(event: Job) -> Score | Short:
    return Score(event.n)


async def _never(event: Job) -> NoReturn:
    raise LookupError("as it says")


UNREADABLE: dict[str, tuple[Node, str]] = {
    "nothing declared": (_undeclared, "does not say what it returns. Annotate it"),
    "Structs without a tag": (_untagged, "returns what can't be stored and read back: If a type union contains"),
}


@pytest.mark.parametrize("name", UNREADABLE)
async def test_a_type_that_can_not_be_read_back_stops_the_boot_and_the_free_form(name: str) -> None:
    node, message = UNREADABLE[name]
    with pytest.raises(WiringError, match=node.__name__) as stopped:
        bind([node], Job)
    assert message in str(stopped.value)
    async with open_run() as run:
        with pytest.raises(WiringError) as failed:
            await run.step(node, Job())
        assert str(failed.value) == str(stopped.value)


async def test_a_node_that_never_returns_is_one() -> None:
    async with open_run() as run:
        with pytest.raises(LookupError):
            await execute(bind([_never], Job), run, Job())


async def _upsert(run: Run) -> None:
    run.vectors.upsert("notes", "1", "text")


HANDLES: dict[str, Callable[[Run], Awaitable[Any]]] = {
    "run.vectors.search": lambda run: run.vectors.search("notes", "text"),
    "run.vectors.upsert": _upsert,
    "run.vectors.delete": lambda run: run.vectors.delete("notes", ["1"]),
    "run.web.post": lambda run: run.web.post("http://127.0.0.1:9/", {}),
    "run.llm.ask": lambda run: run.llm.ask("tickets/classify", returns=str),
    "run.llm.stream": lambda run: run.llm.stream("tickets/classify", returns=str),
    "run.llm.embed": lambda run: run.llm.embed(["text"]),
}


@pytest.mark.parametrize("name", HANDLES)
async def test_a_handle_is_refused_where_no_node_runs(name: str) -> None:
    """Between the steps of a free form, and in a task that a node left behind: nothing of it would be kept."""
    async with open_run() as run:
        ended = as_step(run, "node")
        ended._effects.over = True
        for where in (as_step(run, ""), ended):
            with pytest.raises(WiringError) as refused:
                await HANDLES[name](where)
            assert str(refused.value) == (
                f"{name}: call it while a node runs, in the free form by `await run.step(…)`."
            )
            assert not where._effects.documents
