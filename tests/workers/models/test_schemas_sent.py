"""The schemas of replies, sent by the real SDKs to raw servers that refuse what the providers refuse."""

import enum
from typing import Annotated, Any, Generic, Literal, TypeVar

import pytest
from hypothesis import assume, given, settings
from msgspec import Meta, Struct, defstruct
from msgspec.structs import replace

import workers.providers
from prompts import Prompts
from service.core.errors import CallboardError, WiringError
from service.core.settings import Settings
from tests.board import TICKET, board_on
from tests.models import with_keys
from tests.workers.models.asking import Ledger, ask
from tests.workers.models.strict_servers import anthropic_refuses, openai_refuses, strict_provider
from tests.workers.simulator.test_simulated_schemas import STRUCTS
from workers.models.client import open_llm
from workers.models.provider import Schema
from workers.models.structured import schema_of
from workers.providers import discover
from workers.simulator.strict import check_anthropic, check_openai

T = TypeVar("T")


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Step(enum.IntEnum):
    FIRST = 1
    LAST = 9


class Answer(Struct, frozen=True, tag="answer"):
    text: str


class Question(Struct, frozen=True, tag="question"):
    ask: str


class Numbered(Struct, frozen=True, tag=7):
    number: Annotated[int, Meta(ge=0)]


class Page(Struct, Generic[T], frozen=True):
    items: list[T]


class Ответ(Struct, frozen=True):
    текст: str


class Вывод(Struct, frozen=True):
    текст: str


class Everything(Struct, frozen=True):
    mood: Mood
    step: Step
    mixed: Literal["a", 1, None]
    maybe: Mood | None
    either: Answer | Question
    one: Numbered
    tags: list[Literal["x", "y"]]
    said: Annotated[Literal["z"], Meta(description="Always z.")] = "z"
    nothing: None = None


LONG: Any = defstruct("A" * 70, [("text", str)])
OTHER_LONG: Any = defstruct("A" * 69 + "B", [("text", str)])
KINDS: list[Any] = [Everything, Answer, Page[int], Page[Answer], Page[Page[Mood]], Ответ, Вывод, LONG, OTHER_LONG]


@pytest.mark.parametrize("name", ["openai", "anthropic"])
@pytest.mark.parametrize("returns", KINDS, ids=str)
async def test_a_reply_of_any_type_is_asked_for_as_the_provider_wants(
    prompts: Prompts, ledger: Ledger, name: str, returns: Any
) -> None:
    async with strict_provider() as (url, provider):
        address = {"openai_base_url": f"{url}/v1"} if name == "openai" else {"anthropic_base_url": url}
        chosen = with_keys(Settings(), **{f"{name}_api_key": "sk-1"}, **address)
        alone = Prompts(prompts.versions, {"both": prompts.models[name]})
        async with open_llm(chosen, alone, None, discover(workers.providers)) as llm:
            reply = await ask(llm, ledger, returns=returns)
    assert provider.refusals == []
    assert isinstance(reply, returns if isinstance(returns, type) else Page)
    assert ledger.outcomes == ["ok"]


def test_names_are_those_that_providers_take_and_different_types_have_different_ones() -> None:
    names = [schema_of(kind).name for kind in KINDS]
    assert len({*names}) == len(KINDS)
    assert names[:2] == ["Everything", "Answer"]
    assert all(len(name) <= 64 and name.isascii() for name in names)
    assert names[2].startswith("Page_int_")
    twins: list[Any] = [defstruct("Twin", [("text", str)], module=module) for module in ("one", "two")]
    page: Any = Page
    first, second = [schema_of(page[twin]).name for twin in twins]
    assert first.startswith("Page_Twin_")
    assert first != second


def test_two_types_that_msgspec_can_not_tell_apart_are_named_at_the_wiring() -> None:
    both = defstruct("Both", [("first", Ответ), ("second", Вывод)])
    with pytest.raises(WiringError, match="Both holds two types that share a name"):
        schema_of(both)


def test_a_list_of_anything_is_refused_as_anything_is() -> None:
    with pytest.raises(WiringError, match=r"Loose\.items is a list of anything"):
        schema_of(defstruct("Loose", [("items", list)]))


@settings(deadline=None, max_examples=60)
@given(STRUCTS)
def test_whatever_type_it_is_of_both_providers_take_the_schema(kind: type[Struct]) -> None:
    try:
        schema = schema_of(kind)
    except WiringError:  # strict mode can't say it
        assume(False)
    asked = _asked(schema)
    assert openai_refuses(asked) is None
    assert anthropic_refuses(schema.body) is None
    check_openai(asked)
    check_anthropic({"format": {"type": "json_schema", "schema": schema.body}})


def _asked(schema: Schema) -> dict[str, Any]:
    wanted = {"name": schema.name, "strict": schema.strict, "schema": schema.body}
    return {"type": "json_schema", "json_schema": wanted}


def _deep(levels: int) -> type[Struct]:
    kind = defstruct("Level0", [("text", str)])
    for level in range(1, levels):
        kind = defstruct(f"Level{level}", [("below", kind)])
    return kind


def _wide(count: int, name: str = "f{:04}") -> Any:
    return defstruct("Wide", [(name.format(n), int) for n in range(count)])


def _choice(values: tuple[Any, ...]) -> Any:
    return defstruct("Choice", [("value", Literal[values])])


# What just fits, and what is one too many.
LIMITS: dict[str, tuple[Any, Any]] = {
    "levels": (_deep(10), _deep(11)),
    "properties": (_wide(5_000), _wide(5_001)),
    "values": (_choice(tuple(range(1_000))), _choice(tuple(range(1_001)))),
    "letters": (_wide(2_000, "f{:059}"), _wide(2_001, "f{:059}")),
    "large enum": (_choice(tuple(f"{n:060}" for n in range(250))), _choice(tuple(f"{n:060}" for n in range(251)))),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_what_is_too_large_for_strict_mode_is_not_asked_for_in_it(limit: str) -> None:
    fits, exceeds = map(schema_of, LIMITS[limit])
    assert (fits.strict, exceeds.strict) == (True, False)
    assert openai_refuses(_asked(fits)) is None
    check_openai(_asked(fits))
    forced = _asked(Schema(exceeds.name, exceeds.body, strict=True))
    assert openai_refuses(forced)
    with pytest.raises(CallboardError):
        check_openai(forced)
    check_openai(_asked(exceeds))


async def test_the_shipped_example_is_taken_at_its_first_call_by_openai(settings: Settings) -> None:
    async with strict_provider() as (url, provider):
        chosen = with_keys(replace(settings, simulate="off"), openai_api_key="sk-1", openai_base_url=f"{url}/v1")
        async with board_on(chosen) as board:
            event = await board.ended(await board.send("ticket.opened", TICKET))
    assert provider.refusals == []
    assert event["status"] == "succeeded", event["error"]
    asked = [body for path, body in provider.bodies if "response_format" in body]
    assert {body["response_format"]["json_schema"]["name"] for body in asked} >= {"Triage", "Language"}
    assert all(body["response_format"]["json_schema"]["strict"] for body in asked)
