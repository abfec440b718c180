"""`/openapi.json`: the API told from its operations, their Structs and the event types."""

import re
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from msgspec import Struct, json

from schemas.catalog import Catalog
from schemas.envelope import Envelope
from schemas.event import TAG_FIELD
from service.core.release import release
from service.http.app_state import JSON
from service.http.auth import Endpoint, Need
from service.http.problem import PROBLEM, Problem

REF: Final = "#/components/schemas/{name}"
PARAMETER: Final = re.compile(r"{(\w+)(?::\w+)?}")
OVER_LIMIT: Final = (
    "The key has used up its rate, may have no more events open, or its tenant fills the queue of writes"
)
RETRY_AFTER: Final = {
    "headers": {"Retry-After": {"description": "Whole seconds.", "schema": {"type": "integer", "minimum": 1}}}
}

Schemas = Mapping[type, dict[str, Any]]


class Operation(Struct, frozen=True):
    """A method of a path, and the scope that a key needs for it.

    `answer` None is JSON that is composed of rows, an object. `slash`: the path is also there with one at its end.
    """

    method: str
    path: str
    scope: Need
    endpoint: Endpoint
    query: type | None = None
    body: type | None = None
    takes: Sequence[str] = (JSON,)
    answer: type | None = None
    statuses: Sequence[int] = (200,)
    media: str = JSON
    slash: bool = False
    is_limited: bool = False


def described(operations: Sequence[Operation], types: Catalog) -> dict[str, Any]:
    all_structs = [
        struct
        for operation in operations
        for struct in (operation.query, operation.body, operation.answer)
        if struct is not None
    ]
    structs = list(dict.fromkeys([Problem, *all_structs, *(kind.struct for kind in types.values())]))
    refs, components = json.schema_components(structs, ref_template=REF)
    schemas = dict(zip(structs, refs, strict=True))
    _tell_events(types, schemas, components)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = PARAMETER.sub(r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, schemas, components)
    for query in {operation.query for operation in operations if operation.query}:
        del components[_name(schemas[query])]
    return {
        "openapi": "3.1.0",
        "info": {"title": "Callboard", "version": release()},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(operation: Operation, schemas: Schemas, components: Mapping[str, Any]) -> dict[str, Any]:
    name = operation.endpoint.__name__
    parameters = [_parameter(name, "path", True, {"type": "string"}) for name in PARAMETER.findall(operation.path)]
    if operation.query is not None:
        parameters += _query_parameters(components[_name(schemas[operation.query])])
    rows = {"type": "object" if operation.media == JSON else "string"}
    answer = schemas[operation.answer] if operation.answer else rows
    contents = {media: {"schema": schemas[operation.body]} for media in operation.takes} if operation.body else None
    return {
        "operationId": name,
        "summary": (operation.endpoint.__doc__ or name.replace("_", " ")).strip().partition("\n")[0],
        "security": [] if operation.scope == "open" else [{"key": [operation.scope]}],
        "parameters": parameters,
        **({"requestBody": {"content": contents}} if contents else {}),
        "responses": {
            **{
                str(status): _response(HTTPStatus(status).phrase, operation.media, answer)
                for status in operation.statuses
            },
            **({"429": _response(OVER_LIMIT, PROBLEM, schemas[Problem]) | RETRY_AFTER} if operation.is_limited else {}),
            "default": _response("What went wrong", PROBLEM, schemas[Problem]),
        },
    }


def _query_parameters(query: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A query names each parameter once: it has no lists."""
    for name, schema in query["properties"].items():
        if all(option.get("type") != "array" for option in schema.get("anyOf", [schema])):
            yield _parameter(name, "query", name in query.get("required", ()), schema)


def _parameter(name: str, location: str, required: bool, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": location, "required": required, "schema": schema}


def _response(description: str, media: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {media: {"schema": schema}}}


def _tell_events(types: Catalog, schemas: Schemas, components: dict[str, Any]) -> None:
    """An envelope is an event of one of the types: with `data` of its own, and the attributes and extensions of all."""
    envelope, extension = _name(schemas[Envelope]), {"type": ["string", "integer", "boolean", "null"]}
    components["Attributes"] = {**components[envelope], "additionalProperties": extension}
    refs = {name: REF.format(name="event." + re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)) for name in types}
    for name, kind in types.items():
        data = components[_name(schemas[kind.struct])]
        del data["properties"][TAG_FIELD]
        data["required"] = [name for name in data.get("required", []) if name != TAG_FIELD]
        components[refs[name].rpartition("/")[2]] = {
            "allOf": [{"$ref": REF.format(name="Attributes")}],
            "properties": {"type": {"const": name}, "data": schemas[kind.struct]},
            "required": ["type", *(["data"] if data["required"] else [])],
        }
    one_of = [{"$ref": ref} for ref in refs.values()]
    components[envelope] = {"oneOf": one_of, "discriminator": {"propertyName": "type", "mapping": refs}}


def _name(ref: Mapping[str, Any]) -> str:
    name: str = ref["$ref"].rpartition("/")[2]
    return name
