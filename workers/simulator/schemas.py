"""A value that fits a JSON Schema: all that msgspec writes, and the strict form in which providers are asked."""

import base64
import math
import re
import string
from random import Random
from re import _compiler, _parser  # type: ignore[attr-defined]  # the only parser of Python's own patterns
from typing import Any, Final

import msgspec
from msgspec import Struct

from service.core.errors import CallboardError

BOUNDS: Final = re.compile(r"\{.*\}\Z", re.DOTALL)
FORMATS: Final = {
    "date-time": "2025-01-01T00:00:00Z",
    "date": "2025-01-01",
    "time": "00:00:00Z",
    "partial-time": "00:00:00",
    "duration": "PT1H",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "decimal": "1.25",
}
TEXT: Final = (
    "This text was written by Callboard's simulator, not by a model: set a provider key to get real answers. "
    "It stands where the reply would be, and is long enough to look like one."
)
PRINTABLE: Final = "".join(map(chr, range(32, 127)))
REPEAT_MAX: Final = 4
DEEP: Final = 3
DEPTH_MAX: Final = 8
TRIES: Final = 50


class _TooDeep(Exception):
    """This branch of a recursive schema has no end in sight."""


class _Scene(Struct, frozen=True):
    random: Random
    components: dict[str, Any]
    depth: int = 0


def value(schema: dict[str, Any], random: Random) -> Any:
    """The same for the same schema and state of `random`. Raises CallboardError where no value is found."""
    try:
        return _value("reply", schema, _Scene(random, schema.get("$defs", {})))
    except (_TooDeep, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, re.error) as error:
        raise CallboardError(f"The simulator can't meet this schema: {error or 'it has no end'}.") from error


def _value(name: str, schema: dict[str, Any], scene: _Scene) -> Any:
    if "$ref" in schema:
        if scene.depth >= DEPTH_MAX:
            raise _TooDeep
        target = scene.components[schema["$ref"].rpartition("/")[2]]
        own = {key: member for key, member in schema.items() if key != "$ref"}
        return _value(name, {**target, **own}, _Scene(scene.random, scene.components, scene.depth + 1))
    schema = _described_bounds(schema) | schema
    for key in ("enum", "examples"):
        if schema.get(key):
            return scene.random.choice(schema[key])
    if "const" in schema:
        return schema["const"]
    if "anyOf" in schema:
        return _branch(name, schema["anyOf"], scene)
    return _of_type(name, schema, scene)


def _branch(name: str, branches: list[dict[str, Any]], scene: _Scene) -> Any:
    """One that is not null; deep down, the one that ends soonest."""
    order = scene.random.sample(branches, len(branches))
    order.sort(key=lambda option: _reach(option, scene) if scene.depth > DEEP else option.get("type") == "null")
    for option in order:
        try:
            return _value(name, option, scene)
        except _TooDeep:
            continue
    raise _TooDeep


def _reach(schema: dict[str, Any], scene: _Scene) -> int:
    target = scene.components.get(schema.get("$ref", "").rpartition("/")[2], schema)
    return 0 if schema.get("type") == "null" else 1 + str(target).count("$ref")


def _of_type(name: str, schema: dict[str, Any], scene: _Scene) -> Any:
    match _type(schema):
        case "object":
            return _object(schema, scene)
        case "array":
            return _array(name, schema, scene)
        case "integer" | "number" as kind:
            return _number(schema, scene.random, is_integer=kind == "integer")
        case "boolean":
            return scene.random.random() < 0.9
        case "null":
            return None
    return _text(name, schema, scene.random)


def _described_bounds(schema: dict[str, Any]) -> dict[str, Any]:
    """The bounds that strict mode made the asker write into the description, as JSON at its end."""
    match = BOUNDS.search(schema.get("description", ""))
    try:
        return msgspec.json.decode(match[0], type=dict[str, Any]) if match else {}
    except msgspec.DecodeError:
        return {}


def _type(schema: dict[str, Any]) -> str:
    kind = schema.get("type", "string")
    return next((name for name in kind if name != "null"), "null") if isinstance(kind, list) else str(kind)


def _object(schema: dict[str, Any], scene: _Scene) -> dict[str, Any]:
    properties = schema.get("properties", {})
    if scene.depth > DEEP:
        properties = {key: properties[key] for key in schema.get("required", properties)}
    members = {key: _value(key, member, scene) for key, member in properties.items()}
    if "properties" in schema:
        return members
    wanted = _amount(schema.get("minProperties", 0), schema.get("maxProperties", math.inf), scene)
    keys, values = schema.get("propertyNames", {}), schema.get("additionalProperties", {})
    for _ in range(TRIES):
        if len(members) >= wanted:
            break
        members[str(_value("", keys, scene))] = _value("value", values, scene)
    return members


def _array(name: str, schema: dict[str, Any], scene: _Scene) -> list[Any]:
    if "prefixItems" in schema:
        return [_value(name, item, scene) for item in schema["prefixItems"]]
    items = schema.get("items", {})
    wanted = _amount(schema.get("minItems", 0), schema.get("maxItems", math.inf), scene)
    if not schema.get("uniqueItems"):
        return [_value(name, items, scene) for _ in range(wanted)]
    values: dict[bytes, Any] = {}
    for _ in range(TRIES):
        if len(values) >= wanted:
            break
        item = _value("", items, scene)
        values[msgspec.json.encode(item)] = item
    return list(values.values())


def _amount(low: int, high: float, scene: _Scene) -> int:
    return int(min(max(low, 0 if scene.depth > DEEP else 2), high))


def _number(schema: dict[str, Any], random: Random, *, is_integer: bool) -> float:
    low, high = _ends(schema, 1 if is_integer else 0)
    if step := schema.get("multipleOf"):
        times: list[float] = [random.randint(math.ceil(low / step), math.floor(high / step)) for _ in range(TRIES)]
        fitting: float = next(
            (factor * step for factor in times if math.fmod(factor * step, step) == 0), times[0] * step
        )
        return fitting
    if is_integer:
        return random.randint(math.ceil(low), math.floor(high))
    number = random.uniform(low, high)
    short = round(number, 3)
    return short if low <= short <= high else number


def _ends(schema: dict[str, Any], step: int) -> tuple[float, float]:
    """The least and the greatest number; next to an excluded one is `step` away, or as near as can be for 0."""
    low = max(schema.get("minimum", -math.inf), _beside(schema.get("exclusiveMinimum", -math.inf), step, math.inf))
    high = min(schema.get("maximum", math.inf), _beside(schema.get("exclusiveMaximum", math.inf), -step, -math.inf))
    span = max(100 if step else 1, 10 * schema.get("multipleOf", 0))
    if low == -math.inf:
        low = 0 if high >= 0 else high - span
    return low, high if high < math.inf else low + span


def _beside(end: float, step: int, towards: float) -> float:
    return end + step if step else math.nextafter(end, towards) if math.isfinite(end) else end


def _text(name: str, schema: dict[str, Any], random: Random) -> str:
    """Without a name it is by chance: for what has to differ from its neighbours."""
    if schema.get("format") in FORMATS:
        return FORMATS[schema["format"]]
    low, high = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    if schema.get("contentEncoding") == "base64":
        return base64.b64encode(random.randbytes(int(low) // 4 * 3 or 3 * (high > 3))).decode()
    letters = "" if name else "".join(random.choices(string.ascii_lowercase, k=int(min(max(8, low), high))))
    for go in range(TRIES if "pattern" in schema else 0):
        text = matching(schema["pattern"], random) + ("" if go % 2 else letters)
        if low <= len(text) <= high and re.search(schema["pattern"], text):
            return text
    if not name:
        return letters
    text = f"(simulated {name}) {TEXT}" if name in ("text", "body", "reply") else f"simulated {name}"
    return text[: int(min(high, len(text)))].ljust(low, ".")


def matching(pattern: str, random: Random) -> str:
    """A text made along the pattern; look-arounds and inner anchors are passed over, so it may fail to match."""
    return _along(_parser.parse(pattern), random, {})


def _along(parts: Any, random: Random, groups: dict[int, str]) -> str:
    return "".join(_one(kind, what, random, groups) for kind, what in parts)


def _one(kind: Any, what: Any, random: Random, groups: dict[int, str]) -> str:
    match str(kind):
        case "LITERAL":
            return chr(what)
        case "ANY" | "NOT_LITERAL" | "IN":
            return _char(kind, what, random)
        case "BRANCH":
            return _along(random.choice(what[1]), random, groups)
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            low, high, inner = what
            times = random.randint(low, min(int(high), low + REPEAT_MAX))
            return "".join(_along(inner, random, groups) for _ in range(times))
        case "SUBPATTERN":
            groups[what[0]] = _along(what[-1], random, groups)
            return groups[what[0]]
        case "ATOMIC_GROUP":
            return _along(what, random, groups)
        case "GROUPREF":
            return groups.get(what, "")
    return ""


def _char(kind: Any, what: Any, random: Random) -> str:
    """One that this piece of a pattern matches: a printable one, or one that it names."""
    piece = _compiler.compile(_parser.SubPattern(_parser.State(), [(kind, what)]))
    chars = PRINTABLE
    for member, codes in what if str(kind) == "IN" else ():
        if str(member) in ("LITERAL", "RANGE"):
            chars += "".join(map(chr, codes if isinstance(codes, tuple) else (codes,)))
    return random.choice([char for char in chars if piece.fullmatch(char)] or "?")
