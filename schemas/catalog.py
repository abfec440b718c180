"""Which events there are: found in a package, one decoder per type."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import msgspec
from msgspec import Struct, json

from schemas.event import TAG_FIELD, Event
from schemas.origin import raised_at


class CatalogError(Exception):
    """Two events claim one type, an event names none, or a file of the user's own can't be loaded."""


class EventType(Struct, frozen=True):
    """One event type: its name, its Struct, its decoder."""

    name: str
    struct: type[Event]
    decoder: json.Decoder[Event]

    def decode(self, data: bytes | msgspec.Raw) -> Event:
        """Raises msgspec.ValidationError (with a path from `$`) or msgspec.DecodeError."""
        return self.decoder.decode(data)

    def encode(self, event: Event) -> bytes:
        """The `data` member: the event's fields as JSON, without the tag that says its type."""
        encoded = json.encode(event)
        rest = encoded[len(json.encode({TAG_FIELD: type_name(type(event))})) - 1 :]
        return b"{" + rest.removeprefix(b",")

    def schema(self) -> dict[str, Any]:
        """JSON Schema of `data`, components inlined under `$defs`."""
        (ref,), components = json.schema_components([self.struct], ref_template="#/$defs/{name}")
        own = components.pop(ref["$ref"].rsplit("/", 1)[1])
        own["properties"].pop(TAG_FIELD)
        own["required"] = [name for name in own.get("required", []) if name != TAG_FIELD]
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **own,
            **({"$defs": components} if components else {}),
        }


Catalog = Mapping[str, EventType]


def type_name(struct: type[Event]) -> str:
    """The CloudEvents `type` an event class says it is."""
    tag = struct.__struct_config__.tag
    if not isinstance(tag, str) or tag == struct.__name__:  # msgspec's own choice where none is given
        raise CatalogError(f'{_qualname(struct)} names no type. Write it behind Event: tag="…".')
    return tag


def _qualname(struct: type[Event]) -> str:
    return f"{struct.__module__}.{struct.__qualname__}"


def discover(package: ModuleType) -> Catalog:
    """Every event declared in the modules of `package`.

    Raises CatalogError where two classes claim one type.
    """
    types: dict[str, EventType] = {}
    for struct in _structs(package):
        name = type_name(struct)
        if name in types:
            raise CatalogError(
                f'{_qualname(types[name].struct)} and {_qualname(struct)} both declare "{name}". Rename one.'
            )
        types[name] = EventType(name, struct, json.Decoder(struct))
    return types


def modules(package: ModuleType) -> Iterator[ModuleType]:
    """The modules of a package, below it too, in the order of their names.

    Raises CatalogError, with file and line, where one can't be loaded, whatever it raises.
    """
    for info in sorted(iter_modules(package.__path__, f"{package.__name__}."), key=lambda module: module.name):
        module = _loaded(info.name)
        yield module
        if info.ispkg:
            yield from modules(module)


def _loaded(name: str) -> ModuleType:
    try:
        return import_module(name)
    except (Exception, SystemExit) as error:
        if type(error).__module__.partition(".")[0] in ("schemas", "service", "prompts"):
            raise  # a sentence of ours
        message = str(error.msg if isinstance(error, SyntaxError) else error).partition("\n")[0]
        what = f"{type(error).__name__}: {message}" if message else type(error).__name__
        raise CatalogError(f"{raised_at(error) or name} can't be loaded: {what}.") from error


def _structs(package: ModuleType) -> Iterator[type[Event]]:
    for module in modules(package):
        for value in vars(module).values():
            own = isinstance(value, type) and issubclass(value, Event) and value.__module__ == module.__name__
            if own and value is not Event and not value.__name__.startswith("_"):
                yield value
