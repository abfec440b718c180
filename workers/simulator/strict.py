"""What providers refuse in the schema of a reply, in their own words, so that a test fails here as it would there.

OpenAI's rules are those of its guide on structured outputs ("Supported schemas"), of the validator in its SDK for Java,
and of 400s that were reported in public; Anthropic's are those of its page on structured outputs.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from service.core.errors import CallboardError

NAME: Final = re.compile(r"[a-zA-Z0-9_-]+")
NAME_MAX: Final = 64
LEVELS_MAX: Final = 10
PROPERTIES_MAX: Final = 5_000
ENUM_VALUES_MAX: Final = 1_000
LETTERS_MAX: Final = 120_000
LARGE_ENUM_VALUES: Final = 250
LARGE_ENUM_LETTERS_MAX: Final = 15_000

ANYWHERE: Final = frozenset({"type", "title", "description", "enum", "const"})
ROOT: Final = frozenset({"$defs", "$schema", "$id"})
NUMBER: Final = frozenset({"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf"})
BY_TYPE: Final[Mapping[str, frozenset[str]]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "string": frozenset({"pattern", "format"}),
    "number": NUMBER,
    "integer": NUMBER,
    "boolean": frozenset(),
    "null": frozenset(),
}
PYTHON_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
FORMATS: Final = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"},
)
ANTHROPIC_REFUSES: Final = NUMBER | {"minLength", "maxLength", "maxItems", "uniqueItems", "oneOf"}

Context = tuple[str, ...]


def check_openai(response_format: Mapping[str, Any] | None) -> None:
    """Raises CallboardError with OpenAI's sentence where it would answer 400 to this `response_format`."""
    if not response_format or response_format.get("type") != "json_schema":
        return
    wanted = response_format.get("json_schema")
    name = wanted.get("name") if isinstance(wanted, dict) else None
    where = "Invalid 'response_format.json_schema.name'"
    if not isinstance(wanted, dict) or not isinstance(name, str):
        raise CallboardError("Missing required parameter: 'response_format.json_schema.name'.")
    if not NAME.fullmatch(name):
        pattern = "^[a-zA-Z0-9_-]+$"
        raise CallboardError(f"{where}: string does not match pattern. Expected a string that matches '{pattern}'.")
    if len(name) > NAME_MAX:
        raise CallboardError(f"{where}: string too long. Expected a string with maximum length {NAME_MAX}.")
    schema = wanted.get("schema")
    if not isinstance(schema, dict):
        raise CallboardError("Missing required parameter: 'response_format.json_schema.schema'.")
    if wanted.get("strict"):
        with _readable():
            fault = next(_faults(schema), None)
        if fault:
            raise CallboardError(f"Invalid schema for response_format '{name}': {fault}")


def check_anthropic(output_config: Mapping[str, Any] | None) -> None:
    """Raises CallboardError where Anthropic would answer 400 to the schema in this `output_config`."""
    format_ = (output_config or {}).get("format")
    schema = format_.get("schema") if isinstance(format_, dict) else None
    if not isinstance(schema, dict):
        return
    with _readable():
        fault = next(_anthropic_faults(schema), None)
    if fault:
        raise CallboardError(f"output_config.format.schema: {fault}")


@contextmanager
def _readable() -> Iterator[None]:
    """What is no schema at all is refused as well."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CallboardError(f"The schema is not a valid JSON Schema: {error}.") from error


def _anthropic_faults(schema: dict[str, Any]) -> Iterator[str]:
    for node, context in _nodes(schema, ()):
        where = f"In {'.'.join(context) or 'the root'}, "
        if not node.keys() - {"title", "description"}:
            yield f"{where}empty schema ({{}}) is not supported."
        if refused := sorted(ANTHROPIC_REFUSES & node.keys()):
            yield f"{where}properties {', '.join(refused)} are not supported."
        if node.get("type") == "object" and node.get("additionalProperties") is not False:
            yield f"{where}for 'object' type, 'additionalProperties' must be explicitly set to false."


def _faults(root: dict[str, Any]) -> Iterator[str]:
    if root.get("type") != "object":
        yield f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{root.get('type')}\"'."
        return
    nodes = list(_nodes(root, ()))
    for node, context in nodes:
        for fault in _node_faults(node, root, at_root=node is root):
            yield f"In context={context}, {fault}"
    yield from _size_faults(root, [node for node, _ in nodes])


def _node_faults(node: dict[str, Any], root: dict[str, Any], *, at_root: bool) -> Iterator[str]:
    if "$ref" in node:
        yield from _reference_faults(node, root)
        return
    if "anyOf" in node:
        allowed = frozenset({"anyOf", "title", "description"})
        yield from _branch_faults(node["anyOf"])
    elif "type" not in node:
        yield "schema must have a 'type' key."
        return
    else:
        types = _types(node)
        if not types or not types <= BY_TYPE.keys():
            yield "strict json_schema type must be a string or a non-empty array of strings."
            return
        allowed = ANYWHERE.union(*(BY_TYPE[name] for name in types))
        yield from _type_faults(node, types)
    for keyword in sorted(node.keys() - allowed - (ROOT if at_root else frozenset())):
        yield f"'{keyword}' is not permitted."


def _reference_faults(node: dict[str, Any], root: dict[str, Any]) -> Iterator[str]:
    if others := sorted(node.keys() - {"$ref"}):
        yield f"$ref cannot have keywords {{{', '.join(map(repr, others))}}}."
    targets = {"#", *(f"#/$defs/{name}" for name in root.get("$defs", {}))}
    if node["$ref"] not in targets:
        yield f"reference to component '{node['$ref']}' which was not found in the schema."


def _branch_faults(branches: Any) -> Iterator[str]:
    if not isinstance(branches, list) or not branches:
        yield "'anyOf' must be a non-empty array."
        return
    first: dict[str, list[Any]] = {}
    for branch in branches:
        for key, node in list(branch.get("properties", {}).items())[:1]:
            first.setdefault(key, []).append(node.get("const", node.get("enum", [None])[0]))
    for values in first.values():
        # A discriminator: each branch has another single value there.
        if len(values) > 1 and (None in values or len(values) != len({repr(value) for value in values})):
            yield "Objects provided via 'anyOf' must not share identical first keys."


def _type_faults(node: dict[str, Any], types: set[str]) -> Iterator[str]:
    if "object" in types:
        properties = node.get("properties")
        if node.get("additionalProperties") is not False:
            yield "'additionalProperties' is required to be supplied and to be false."
        missing = sorted((properties or {}).keys() - set(node.get("required") or ()))
        if properties is None or missing or not isinstance(node.get("required"), list):
            lacks = f" Missing '{missing[0]}'." if missing else ""
            yield f"'required' is required to be supplied and to be an array including every key in properties.{lacks}"
        elif extra := sorted(set(node["required"]) - properties.keys()):
            yield f"'required' has the extra key '{extra[0]}'."
    if "array" in types and not isinstance(node.get("items"), dict):
        yield "array schema missing items."
    if "format" in node and node["format"] not in FORMATS:
        yield f"'{node['format']}' is not a valid format."
    fitting = tuple(python for name in types for python in PYTHON_TYPES[name])
    for value in (*node.get("enum", ()), *([node["const"]] if "const" in node else ())):
        if not isinstance(value, fitting) or (isinstance(value, bool) and "boolean" not in types):
            yield f"enum value {value!r} does not validate against {{'type': {node['type']!r}}}."


def _size_faults(root: dict[str, Any], nodes: list[dict[str, Any]]) -> Iterator[str]:
    level = max(_level(node) for node in (root, *root.get("$defs", {}).values()))
    names = [name for node in nodes for name in node.get("properties", ())]
    enums = [[*node.get("enum", ()), *([node["const"]] if "const" in node else ())] for node in nodes]
    count = sum(map(len, enums))
    letters = sum(
        len(str(text)) for text in (*names, *root.get("$defs", ()), *(value for values in enums for value in values))
    )
    if level > LEVELS_MAX:
        yield f"{level} levels of nesting exceeds limit of {LEVELS_MAX}."
    if len(names) > PROPERTIES_MAX:
        yield f"Expected at most {PROPERTIES_MAX} object properties in total, but received {len(names)}."
    if count > ENUM_VALUES_MAX:
        yield f"Expected at most {ENUM_VALUES_MAX} enum values in total within a single schema, but received {count}."
    if letters > LETTERS_MAX:
        yield f"Expected at most {LETTERS_MAX} characters of names and values, but received {letters}."
    for values in enums:
        if len(values) > LARGE_ENUM_VALUES and sum(len(str(value)) for value in values) > LARGE_ENUM_LETTERS_MAX:
            yield f"Expected at most {LARGE_ENUM_LETTERS_MAX} characters in an enum of {len(values)} values."


def _types(node: Mapping[str, Any]) -> set[str]:
    type_ = node["type"]
    named = type_ if isinstance(type_, list) else [type_]
    return set(named) if all(isinstance(name, str) for name in named) else set()


def _below(node: Mapping[str, Any]) -> Iterator[tuple[Context, Any]]:
    for keyword in ("properties", "$defs"):
        for name, schema in (node.get(keyword) or {}).items():
            yield (keyword, name), schema
    if "items" in node:
        yield ("items",), node["items"]
    for index, schema in enumerate(node.get("anyOf") or ()):
        yield ("anyOf", str(index)), schema


def _nodes(node: Any, context: Context) -> Iterator[tuple[dict[str, Any], Context]]:
    """Every node of a schema, from the root on; raises CallboardError where one is no object."""
    if not isinstance(node, dict):
        raise CallboardError(f"In context={context}, schema must be a JSON Schema object.")
    yield node, context
    for inner, below in _below(node):
        yield from _nodes(below, (*context, *inner))


def _level(node: Mapping[str, Any]) -> int:
    """How deep a schema goes below its root, which is on level 0; references are not followed."""
    return max((1 + _level(below) for inner, below in _below(node) if inner[0] != "$defs"), default=0)
