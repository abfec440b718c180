"""A reply by type: Struct → the JSON Schema that providers take in strict mode → the reply, decoded."""

from collections.abc import Mapping
from typing import Any, Final, Generic, TypeVar, cast

import msgspec
from msgspec import Struct

from service.errors import CallboardError, WiringError
from workers.clients.provider import Schema

T = TypeVar("T")

KEPT: Final = frozenset({"type", "enum", "const", "description", "anyOf", "items", "properties", "format"})
DROPPED: Final = frozenset({"title", "default", "discriminator", "required", "additionalProperties"})
FORMATS: Final = frozenset({"date-time", "date", "time", "duration", "uuid"})


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
    """The strict JSON Schema of a Struct: references inlined, every field required, nothing beside them.

    What strict mode does not take (bounds, patterns, examples) moves into the description; the decoder enforces it.
    Raises WiringError where no such schema can say what `returns` is.
    """
    if not (isinstance(returns, type) and issubclass(returns, Struct)):
        raise WiringError(f"A reply is a str or a msgspec Struct, not {returns!r}.")
    try:
        (root,), components = msgspec.json.schema_components([returns], ref_template="{name}")
    except TypeError as error:  # a field whose type JSON has no schema for
        raise WiringError(f"{returns.__name__} can't be what a model replies: {error}.") from error
    return Schema(returns.__name__, _strict(root, components, (returns.__name__,)))


def _strict(schema: Mapping[str, Any], components: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    if "$ref" in schema:
        name = schema["$ref"]
        if f"<{name}>" in path:
            raise WiringError(f"{path[0]} holds itself at {_dotted(path)}: a reply's schema can't be recursive.")
        own = {key: value for key, value in schema.items() if key != "$ref"}
        return _strict({**components[name], **own}, components, (*path, f"<{name}>"))
    _refuse(schema, path)
    strict: dict[str, Any] = {key: value for key, value in schema.items() if key in KEPT}
    if "anyOf" in strict:
        strict["anyOf"] = [_strict(each, components, path) for each in strict["anyOf"]]
    if "items" in strict:
        strict["items"] = _strict(strict["items"], components, (*path, "[]"))
    if schema.get("type") == "object":
        properties = schema.get("properties", {})
        strict["properties"] = {name: _strict(each, components, (*path, name)) for name, each in properties.items()}
        strict["required"] = list(properties)
        strict["additionalProperties"] = False
    return _describe(strict, schema)


def _describe(strict: dict[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    bounds = {key: value for key, value in schema.items() if key not in KEPT | DROPPED}
    if strict.get("format") not in FORMATS and "format" in strict:
        bounds["format"] = strict.pop("format")
    if bounds:
        said = f"{strict.get('description', '')} {msgspec.json.encode(bounds).decode()}"
        strict["description"] = said.strip()
    return strict


def _refuse(schema: Mapping[str, Any], path: tuple[str, ...]) -> None:
    if "prefixItems" in schema:
        raise WiringError(f"{_dotted(path)} is a tuple, which a strict reply can't hold: use a Struct or a list.")
    if schema.get("type") == "object" and "properties" not in schema:
        raise WiringError(
            f"{_dotted(path)} is a dict, which a strict reply can't hold: use a Struct or a list of them."
        )
    if not {"type", "enum", "const", "anyOf"} & schema.keys():
        raise WiringError(f"{_dotted(path)} may be anything, which a strict reply can't say: give it a type.")


def _dotted(path: tuple[str, ...]) -> str:
    return ".".join(each for each in path if not each.startswith("<")).replace(".[]", "[]")
