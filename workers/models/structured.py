"""A reply by type: Struct → the JSON Schema that providers take in strict mode → the reply, decoded."""

import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, Generic, TypeVar, cast, get_origin

import msgspec
from msgspec import Struct

from service.core.errors import CallboardError, WiringError
from workers.models.provider import Schema

T = TypeVar("T")

KEPT: Final = frozenset({"type", "enum", "description", "anyOf", "items", "properties", "format"})
DROPPED: Final = frozenset({"title", "default", "discriminator", "required", "additionalProperties"})
FORMATS: Final = frozenset({"date-time", "date", "time", "duration", "uuid"})

NAME_MAX: Final = 64
UNSAFE: Final = re.compile(r"[^a-zA-Z0-9_-]+")
DIGEST_BYTES: Final = 4
# What OpenAI takes in strict mode: developers.openai.com/api/docs/guides/structured-outputs, "Supported schemas".
LEVELS_MAX: Final = 10
PROPERTIES_MAX: Final = 5_000
ENUM_VALUES_MAX: Final = 1_000
LETTERS_MAX: Final = 120_000
LARGE_ENUM_VALUES: Final = 250
LARGE_ENUM_LETTERS_MAX: Final = 15_000
# In this order, since a bool is an int to Python.
JSON_TYPES: Final[Mapping[type, str]] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
}


class InvalidReply(CallboardError):
    """A reply that is not what was asked for."""

    def __init__(self, message: str, reply: str) -> None:
        super().__init__(message)
        self.reply: Final = reply


class Shape(Generic[T]):
    """What a reply has to look like: `schema` is None for plain text."""

    def __init__(self, returns: type[T]) -> None:
        self.schema: Final = None if returns is str else schema_of(returns)
        self._decoder: Final = msgspec.json.Decoder(returns) if self.schema else None

    def decode(self, text: str) -> T:
        """Raises InvalidReply."""
        # Postgres can't hold it, so nothing that keeps the reply could.
        if "\x00" in text or (self._decoder and "\\u0000" in text):
            raise InvalidReply("the reply holds a NUL character", text)
        if self._decoder is None:
            return cast(T, text)
        try:
            return self._decoder.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidReply(str(error), text) from error


def schema_of(returns: type[Any]) -> Schema:
    """The strict JSON Schema of a Struct: references inlined, a type at every node, every field required.

    What strict mode does not take (bounds, patterns, examples) moves into the description; the decoder enforces it.
    A schema that is larger than OpenAI's strict mode allows is sent as one that is not strict.

    Raises WiringError where no such schema can say what `returns` is.
    """
    struct = get_origin(returns) or returns
    if not (isinstance(struct, type) and issubclass(struct, Struct)):
        raise WiringError(f"A reply is a str or a msgspec Struct, not {returns!r}.")
    title = returns.__name__ if isinstance(returns, type) else _title(returns)
    try:
        (root,), components = msgspec.json.schema_components([returns], ref_template="{name}")
    except KeyError as error:  # msgspec's answer to two types whose names are the same once they are made ASCII
        raise WiringError(
            f"{title} holds two types that share a name with {error}: give them different names."
        ) from error
    except TypeError as error:  # a field whose type JSON has no schema for
        raise WiringError(f"{title} can't be what a model replies: {error}.") from error
    body = _strict(root, components, (title,))
    return Schema(_name(title, repr(returns)), body, strict=_within_limits(body))


def _title(alias: Any) -> str:
    """Of a generic, `Page[Ticket]`, where Python says `schemas.pages.Page[schemas.tickets.Ticket]`."""
    return re.sub(r"(\w+\.)+", "", repr(alias))


def _name(title: str, full: str) -> str:
    """`title` as providers take names. One that had to be altered ends in a digest of the `full` name, which says the
    modules too, so that two types stay apart."""
    if len(title) <= NAME_MAX and not UNSAFE.search(title):
        return title
    digest = blake2b(full.encode(), digest_size=DIGEST_BYTES).hexdigest()
    readable = UNSAFE.sub("_", title).strip("_")[: NAME_MAX - len(digest) - 1]
    return f"{readable}_{digest}" if readable else f"reply_{digest}"


def _strict(schema: Mapping[str, Any], components: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    if "$ref" in schema:
        name = schema["$ref"]
        if f"<{name}>" in path:
            raise WiringError(f"{path[0]} holds itself at {_dotted(path)}: a reply's schema can't be recursive.")
        own = {key: value for key, value in schema.items() if key != "$ref"}
        return _strict({**components[name], **own}, components, (*path, f"<{name}>"))
    _refuse(schema, path)
    strict: dict[str, Any] = {key: value for key, value in schema.items() if key in KEPT}
    if "enum" in schema:
        strict |= _typed(strict.pop("enum"))
    if "anyOf" in schema:
        branches = [_strict(branch, components, path) for branch in schema["anyOf"]]
        flat = [branch["anyOf"] if branch.keys() == {"anyOf"} else [branch] for branch in branches]
        strict["anyOf"] = [leaf for leaves in flat for leaf in leaves]
    if "items" in strict:
        strict["items"] = _strict(strict["items"], components, (*path, "[]"))
    if schema.get("type") == "object":
        properties = schema.get("properties", {})
        strict["properties"] = {name: _strict(node, components, (*path, name)) for name, node in properties.items()}
        strict["required"] = list(properties)
        strict["additionalProperties"] = False
    return _describe(strict, schema)


def _typed(values: Sequence[Any]) -> dict[str, Any]:
    """An enum with its type, which OpenAI wants beside it; values of several types are a branch for each type."""
    by_type: dict[str, list[Any]] = {}
    for value in values:
        type_ = next(name for python, name in JSON_TYPES.items() if isinstance(value, python))
        by_type.setdefault(type_, []).append(value)
    branches = [
        {"type": type_} if type_ == "null" else {"type": type_, "enum": group} for type_, group in by_type.items()
    ]
    return branches[0] if len(branches) == 1 else {"anyOf": branches}


def _within_limits(body: Mapping[str, Any]) -> bool:
    """Whether OpenAI's strict mode takes a schema of this size."""
    nodes = list(_nodes(body))
    names = [name for node, _ in nodes for name in node.get("properties", ())]
    enums = [node["enum"] for node, _ in nodes if "enum" in node]
    letters = [sum(len(str(value)) for value in values) for values in enums]
    large = [size for size, values in zip(letters, enums, strict=True) if len(values) > LARGE_ENUM_VALUES]
    return (
        max(level for _, level in nodes) <= LEVELS_MAX
        and len(names) <= PROPERTIES_MAX
        and sum(map(len, enums)) <= ENUM_VALUES_MAX
        and sum(map(len, names)) + sum(letters) <= LETTERS_MAX
        and max(large, default=0) <= LARGE_ENUM_LETTERS_MAX
    )


def _nodes(node: Mapping[str, Any], level: int = 0) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Every node with its level, counted as OpenAI's own validator does (openai-java's JsonSchemaValidator)."""
    yield node, level
    items = [node["items"]] if "items" in node else []
    for below in (*node.get("properties", {}).values(), *items, *node.get("anyOf", ())):
        yield from _nodes(below, level + 1)


def _describe(strict: dict[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    bounds = {key: value for key, value in schema.items() if key not in KEPT | DROPPED}
    if strict.get("format") not in FORMATS and "format" in strict:
        bounds["format"] = strict.pop("format")
    if bounds:
        description = f"{strict.get('description', '')} {msgspec.json.encode(bounds).decode()}"
        strict["description"] = description.strip()
    return strict


def _refuse(schema: Mapping[str, Any], path: tuple[str, ...]) -> None:
    if "prefixItems" in schema:
        raise WiringError(f"{_dotted(path)} is a tuple, which a strict reply can't hold: use a Struct or a list.")
    if schema.get("type") == "object" and "properties" not in schema:
        raise WiringError(
            f"{_dotted(path)} is a dict, which a strict reply can't hold: use a Struct or a list of them."
        )
    if schema.get("type") == "array" and "items" not in schema:
        raise WiringError(f"{_dotted(path)} is a list of anything, which a strict reply can't say: use list[…].")
    if not {"type", "enum", "anyOf"} & schema.keys():
        raise WiringError(f"{_dotted(path)} may be anything, which a strict reply can't say: give it a type.")


def _dotted(path: tuple[str, ...]) -> str:
    return ".".join(part for part in path if not part.startswith("<")).replace(".[]", "[]")
