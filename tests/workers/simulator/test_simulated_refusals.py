"""The simulator answers 400 where OpenAI's structured outputs do, and with its words; asked by the real SDK."""

from contextlib import suppress
from typing import Any

import anthropic
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.errors import CallboardError
from tests.workers.simulator.sdks import asking
from workers.simulator.strict import check_anthropic, check_openai

TEXT: dict[str, Any] = {"type": "string"}


def whole(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def wanted(schema: Any, name: str = "reply", **more: Any) -> dict[str, Any]:
    asked = {"name": name, "strict": True, "schema": schema, **more}
    return {"response_format": {"type": "json_schema", "json_schema": asked}}


def tree(levels: int) -> dict[str, Any]:
    node = dict(TEXT)
    for _ in range(levels):
        node = whole(below=node)
    return node


PAIR = [whole(a=TEXT), whole(b=TEXT)]
TWINS = [whole(a=TEXT), whole(a={"type": "integer"})]
TAGGED = [whole(kind={"type": "string", "enum": [tag]}, text=TEXT) for tag in ("a", "b")]
REFUSED: dict[str, tuple[Any, str]] = {
    "a root that is an array": ({"type": "array", "items": TEXT}, """'type: "object"', got 'type: "array"'"""),
    "a root that is anyOf": ({"anyOf": PAIR}, """'type: "object"'"""),
    "an enum without a type": (whole(mood={"enum": ["a"]}), r"'mood'\), schema must have a 'type' key"),
    "a const without a type": (whole(mood={"const": "a"}), "must have a 'type' key"),
    "an empty schema": (whole(it={}), "must have a 'type' key"),
    "an enum of another type": (whole(mood={"type": "string", "enum": [1]}), "enum value 1 does not validate"),
    "a type that is none": (whole(it={"type": "text"}), "type must be a string or a non-empty array"),
    "an array of anything": (whole(it={"type": "array"}), "array schema missing items"),
    "items of no type": (whole(it={"type": "array", "items": {}}), r"'items'\), schema must have a 'type' key"),
    "more properties": (whole(it=TEXT) | {"additionalProperties": True}, "required to be supplied and to be false"),
    "an optional one": (whole(a=TEXT, b=TEXT) | {"required": ["a"]}, "every key in properties. Missing 'b'"),
    "a required one that is none": (whole(a=TEXT) | {"required": ["a", "c"]}, "extra key 'c'"),
    "nothing said of them": ({"type": "object", "additionalProperties": False}, "'required' is required"),
    "a default": (whole(a={**TEXT, "default": "x"}), "'default' is not permitted"),
    "a least length": (whole(a={**TEXT, "minLength": 1}), "'minLength' is not permitted"),
    "oneOf": (whole(a={"oneOf": [TEXT]}), "must have a 'type' key"),
    "allOf beside a type": (whole(a={"type": "string", "allOf": []}), "'allOf' is not permitted"),
    "a format of others": (whole(a={"type": "string", "format": "uri"}), "'uri' is not a valid format"),
    "a reference with a sibling": (
        whole(a={"$ref": "#/$defs/A", "description": "x"}) | {"$defs": {"A": whole(b=TEXT)}},
        "ref cannot have keywords {'description'}",
    ),
    "a reference to nothing": (whole(a={"$ref": "#/$defs/A"}), "not found in the schema"),
    "branches of one first key": (whole(a={"anyOf": TWINS}), "must not share identical first keys"),
    "eleven levels": (tree(11), "11 levels of nesting exceeds limit of 10"),
    "too many properties": (whole(**{f"p{n}": TEXT for n in range(5001)}), "at most 5000 object properties"),
    "too many values": (whole(a={"type": "integer", "enum": list(range(1001))}), "at most 1000 enum values"),
    "too many letters": (whole(**{"x" * 120_001: TEXT}), "at most 120000 characters"),
    "too long an enum": (
        whole(a={"type": "string", "enum": [f"{n:060}" for n in range(251)]}),
        "15000 characters in an enum of 251",
    ),
}
TAKEN: dict[str, Any] = {
    "ten levels": tree(10),
    "branches": whole(a={"anyOf": PAIR}, b={"anyOf": TAGGED}, c={"anyOf": [TEXT, {"type": "null"}]}),
    "a list of types": whole(a={"type": ["string", "null"]}),
    "bounds": whole(a={"type": "integer", "minimum": 1}, b={"type": "array", "items": TEXT, "minItems": 1}),
    "a recursion": whole(a={"$ref": "#/$defs/A"})
    | {"$defs": {"A": whole(b={"anyOf": [{"$ref": "#/$defs/A"}, {"type": "null"}]})}},
}


@pytest.mark.parametrize("what", REFUSED)
async def test_a_schema_is_refused_in_the_words_of_openai(url: str, what: str) -> None:
    schema, says = REFUSED[what]
    async with asking("openai", url) as ask:
        with pytest.raises(openai.BadRequestError, match=says):
            await ask(**wanted(schema))
        heard = await ask(**wanted({"type": "object", "properties": {"a": TEXT}}, strict=False))
    assert heard.stop == "stop"


@pytest.mark.parametrize("what", TAKEN)
async def test_what_its_guide_allows_is_taken(url: str, what: str) -> None:
    async with asking("openai", url) as ask:
        assert (await ask(**wanted(TAKEN[what]))).stop == "stop"


@pytest.mark.parametrize("name", ["", "a b", "Ответ", "G[int]", "a" * 65, None])
async def test_a_name_is_refused(url: str, name: Any) -> None:
    async with asking("openai", url) as ask:
        with pytest.raises(openai.BadRequestError, match="name"):
            await ask(**wanted(whole(a=TEXT), name=name))


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({**whole(a=TEXT), "additionalProperties": True}, "must be explicitly set to false"),
        (whole(a={"type": "integer", "minimum": 1}), "properties minimum are not supported"),
        (whole(a={}), "empty schema"),
    ],
)
async def test_anthropic_refuses_what_its_page_names(url: str, schema: Any, says: str) -> None:
    async with asking("anthropic", url) as ask:
        with pytest.raises(anthropic.BadRequestError, match=says):
            await ask(output_config={"format": {"type": "json_schema", "schema": schema}})


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
WORDS = st.sampled_from(
    ["type", "properties", "required", "items", "anyOf", "enum", "const", "$ref", "$defs", "format"]
)
JUNK = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=12
)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(WORDS, JUNK, max_size=5))
def test_what_is_no_schema_is_refused_and_breaks_nothing(schema: dict[str, Any]) -> None:
    with suppress(CallboardError):
        check_openai(wanted({"type": "object", **schema})["response_format"])
    with suppress(CallboardError):
        check_anthropic({"format": {"schema": schema}})
