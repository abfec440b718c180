"""Replies by type: the schema a provider is given, and what it refuses to say."""

from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta, Struct

from service.core.errors import WiringError
from workers.models.prices import LINEAR_TOKENS_MAX, Prices, _listed
from workers.models.structured import InvalidReply, Shape, schema_of


class Inner(Struct, frozen=True):
    share: Annotated[float, Meta(ge=0, le=1, description="How much.")]


class Outer(Struct, frozen=True):
    mood: Literal["good", "bad"]
    parts: list[Inner]
    note: str | None = None


class Endless(Struct, frozen=True):
    next: "Endless | None"


class Loose(Struct, frozen=True):
    by_name: dict[str, int]


class Anything(Struct, frozen=True):
    it: Any


class Pair(Struct, frozen=True):
    both: tuple[int, str]


def test_strict_schema() -> None:
    assert schema_of(Outer).body == {
        "type": "object",
        "properties": {
            "mood": {"type": "string", "enum": ["bad", "good"]},
            "parts": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"share": {"type": "number", "description": 'How much. {"minimum":0,"maximum":1}'}},
                    "required": ["share"],
                    "additionalProperties": False,
                },
            },
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["mood", "parts", "note"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("returns", "says"),
    [
        (Endless, "Endless.next"),
        (Loose, "Loose.by_name is a dict"),
        (Anything, "Anything.it may be anything"),
        (Pair, "Pair.both is a tuple"),
        (int, "a str or a msgspec Struct"),
    ],
)
def test_what_no_strict_schema_can_say_is_named(returns: type[object], says: str) -> None:
    with pytest.raises(WiringError, match=says):
        schema_of(returns)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "truncated"),
        ('{"mood": "good", "parts": [{"share": 2}]}', r"\$\.parts\[0\]\.share"),
        ('{"mood": "good", "parts": [{"share": "1"}]}', "Expected `float`, got `str`"),
        ('{"mood": "good", "parts": [], "note": "\\u0000"}', "NUL"),
        ("Here you are: {}", "malformed"),
        ('{"more": ' + "[" * 20_000, "recursion"),
    ],
    ids=lambda value: value[:20],
)
def test_an_invalid_reply_says_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(InvalidReply, match=says) as caught:
        Shape(Outer).decode(text)
    assert caught.value.reply == text


def test_text_stays_as_it_is() -> None:
    assert Shape(str).decode("{not json") == "{not json"
    with pytest.raises(InvalidReply, match="NUL"):
        Shape(str).decode("a\x00b")


@pytest.mark.parametrize(("provider", "model"), [("openai", "gpt-6-luna"), ("anthropic", "claude-sonnet-5-5")])
@pytest.mark.parametrize("tokens_in", [0, 1, 777, LINEAR_TOKENS_MAX, LINEAR_TOKENS_MAX + 1, 500_000])
def test_remembered_prices_are_those_of_the_list(provider: str, model: str, tokens_in: int) -> None:
    asked = Prices().cost_usd(provider, model, tokens_in, 333)
    assert asked == pytest.approx(_listed(provider, model, tokens_in, 333))
    assert asked
