"""What the simulated model says: from the JSON Schema asked for and a hash of the request, always the same."""

import hashlib
import math
import re
from random import Random
from typing import Any, Final

import msgspec

BOUNDS: Final = re.compile(r"\{.*\}\Z", re.DOTALL)
FORMATS: Final = {
    "date-time": "2025-01-01T00:00:00Z",
    "date": "2025-01-01",
    "time": "00:00:00Z",
    "duration": "PT1H",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
TEXT: Final = (
    "This text was written by Callboard's simulator, not by a model: set a provider key to get real answers. "
    "It stands where the reply would be, and is long enough to look like one."
)
EMBEDDING_DIMENSIONS: Final = 1536


def seed(*parts: object) -> Random:
    """A random generator that is the same for the same request, in any process."""
    return Random(hashlib.sha256(msgspec.json.encode(parts)).digest())


def tokens(text: str | bytes) -> int:
    """About what a provider would count."""
    return max(1, math.ceil(len(text) / 4))


def reply(schema: dict[str, Any] | None, random: Random) -> str:
    """Plain text, or JSON that fits `schema`."""
    if schema is None:
        return f"(simulated) {TEXT}"
    return msgspec.json.encode(_value("reply", schema, random)).decode()


def embedding(text: str, dimensions: int) -> list[float]:
    """A unit vector by signed hashing of words: texts that share words are near each other."""
    vector = [0.0] * dimensions
    for word in text.casefold().split() or [""]:
        number = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
        vector[number % dimensions] += 1.0 if number >> 63 else -1.0
    norm = math.hypot(*vector)
    return [each / norm for each in vector] if norm else [1.0, *vector[1:]]


def _value(name: str, schema: dict[str, Any], random: Random) -> Any:
    schema = _told(schema) | schema
    for key in ("enum", "examples"):
        if schema.get(key):
            return random.choice(schema[key])
    if "const" in schema:
        return schema["const"]
    if "anyOf" in schema:
        return _value(name, _filled(schema["anyOf"]), random)
    return _of_type(name, schema, random)


def _of_type(name: str, schema: dict[str, Any], random: Random) -> Any:
    match _type(schema):
        case "object":
            return {key: _value(key, each, random) for key, each in schema.get("properties", {}).items()}
        case "array":
            return [_value(name, schema.get("items", {}), random) for _ in range(_length(schema))]
        case "integer":
            return _number(schema, random, whole=True)
        case "number":
            return _number(schema, random, whole=False)
        case "boolean":
            return random.random() < 0.9
        case "null":
            return None
    return _text(name, schema)


def _told(schema: dict[str, Any]) -> dict[str, Any]:
    """The bounds that strict mode made the asker write into the description, as JSON at its end."""
    found = BOUNDS.search(schema.get("description", ""))
    try:
        return msgspec.json.decode(found[0], type=dict[str, Any]) if found else {}
    except msgspec.DecodeError:
        return {}


def _filled(branches: list[dict[str, Any]]) -> dict[str, Any]:
    """The first branch that is not null."""
    return next((each for each in branches if each.get("type") != "null"), branches[0])


def _type(schema: dict[str, Any]) -> str:
    kind = schema.get("type", "string")
    return next((each for each in kind if each != "null"), "null") if isinstance(kind, list) else str(kind)


def _length(schema: dict[str, Any]) -> int:
    return int(min(max(2, schema.get("minItems", 0)), schema.get("maxItems", math.inf)))


def _number(schema: dict[str, Any], random: Random, *, whole: bool) -> float:
    step = 1 if whole else 0.001
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf) + step)
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf) - step)
    low = low if low > -math.inf else min(0, high)
    high = high if high < math.inf else low + (100 if whole else 1)
    return random.randint(math.ceil(low), math.floor(high)) if whole else round(random.uniform(low, high), 3)


def _text(name: str, schema: dict[str, Any]) -> str:
    if schema.get("format") in FORMATS:
        return FORMATS[schema["format"]]
    text = f"(simulated {name}) {TEXT}" if name in ("text", "body", "reply") else f"simulated {name}"
    return text[: schema.get("maxLength", len(text))].ljust(schema.get("minLength", 0), ".")
