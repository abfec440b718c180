"""`/openapi.json`: the API told from its routes, its Structs and the event types."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from msgspec import Struct, json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from schemas.catalog import Catalog
from schemas.envelope import Envelope
from schemas.event import TAG_FIELD
from service.forget_redis import Forgotten, Target
from service.http import audit, batch, catalog, documents, events, metrics, operations, stream
from service.http.app_state import JSON, reply, state_of
from service.http.auth import Endpoint, Need
from service.http.problem import PROBLEM, Problem
from service.intake import Accepted
from service.operate import Operated
from service.release import release
from workers.clients.vectors import Search

REF: Final = "#/components/schemas/{name}"
PARAMETER: Final = re.compile(r"{(\w+)(?::\w+)?}")
OVER_LIMIT: Final = (
    "The key has used up its rate, may have no more events open, or its tenant fills the queue of writes"
)
RETRY_AFTER: Final = {
    "headers": {"Retry-After": {"description": "Whole seconds.", "schema": {"type": "integer", "minimum": 1}}}
}

Schemas = Mapping[type, dict[str, Any]]


class Shape(Struct, frozen=True):
    """What an endpoint takes and gives; `answer` None is JSON that is composed of rows, an object."""

    query: type | None = None
    body: type | None = None
    answer: type | None = None
    statuses: Sequence[int] = (200,)
    media: str = JSON
    takes: Sequence[str] = (JSON,)
    is_limited: bool = False


SHAPES: Final[Mapping[Endpoint, Shape]] = {
    events.post_event: Shape(
        body=Envelope, answer=Accepted, statuses=(202,), takes=events.MEDIA_TYPES, is_limited=True
    ),
    batch.post_batch: Shape(body=list[Envelope], statuses=(202, 207), takes=batch.MEDIA_TYPES, is_limited=True),
    events.list_events: Shape(query=events.Filter),
    stream.follow_event: Shape(media="text/event-stream"),
    operations.replay_event: Shape(body=operations.Replay, statuses=(202,)),
    operations.cancel_event: Shape(statuses=(202,)),
    operations.list_dead_letters: Shape(query=operations.Page),
    operations.replay_dead_letters: Shape(body=operations.Which, answer=Operated),
    operations.discard_dead_letters: Shape(body=operations.Which, answer=Operated),
    operations.forget: Shape(body=Target, answer=Forgotten),
    audit.list_operations: Shape(query=audit.Operations),
    documents.search_collection: Shape(body=Search, answer=documents.Hits),
    documents.put_documents: Shape(body=documents.Upsert, answer=documents.Upserted),
    documents.delete_documents: Shape(body=documents.Deletion, answer=documents.Deleted),
    catalog.get_schema: Shape(media="application/schema+json"),
    catalog.render_prompt: Shape(body=catalog.Filled),
    catalog.get_stats: Shape(query=catalog.Period),
    metrics.metrics: Shape(media="text/plain"),
    metrics.fleet: Shape(media="text/plain"),
}


async def openapi(request: Request) -> Response:
    """This document: OpenAPI 3.1."""
    return reply(described(request.app.routes, state_of(request).catalog))


def described(routes: Iterable[BaseRoute], types: Catalog) -> dict[str, Any]:
    """Of the routes that ask for a scope, or for none; those of the page do neither."""
    shapes = list(SHAPES.values())
    all_structs = [
        struct for shape in shapes for struct in (shape.query, shape.body, shape.answer) if struct is not None
    ]
    structs = list(dict.fromkeys([Problem, *all_structs, *(kind.struct for kind in types.values())]))
    refs, components = json.schema_components(structs, ref_template=REF)
    schemas = dict(zip(structs, refs, strict=True))
    _tell_events(types, schemas, components)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        need = getattr(getattr(route, "endpoint", None), "need", None)
        if isinstance(route, Route) and need is not None and not route.path.endswith("/"):
            path = PARAMETER.sub(r"{\1}", route.path)
            for method in sorted((route.methods or set()) - {"HEAD"}):
                paths.setdefault(path, {})[method.lower()] = _operation(route, need, schemas, components)
    for query in {shape.query for shape in shapes if shape.query}:
        del components[_name(schemas[query])]
    return {
        "openapi": "3.1.0",
        "info": {"title": "Callboard", "version": release()},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(route: Route, need: Need, schemas: Schemas, components: Mapping[str, Any]) -> dict[str, Any]:
    shape = SHAPES.get(inspect.unwrap(route.endpoint), Shape())
    parameters = [_parameter(name, "path", True, {"type": "string"}) for name in PARAMETER.findall(route.path)]
    if shape.query is not None:
        parameters += _query_parameters(components[_name(schemas[shape.query])])
    answer = schemas[shape.answer] if shape.answer else {"type": "object" if shape.media == JSON else "string"}
    body = {"content": {media: {"schema": schemas[shape.body]} for media in shape.takes}} if shape.body else None
    return {
        "operationId": route.name,
        "summary": (route.endpoint.__doc__ or route.name.replace("_", " ")).strip().partition("\n")[0],
        "security": [] if need == "open" else [{"key": [need]}],
        "parameters": parameters,
        **({"requestBody": body} if body else {}),
        "responses": {
            **{str(status): _response(HTTPStatus(status).phrase, shape.media, answer) for status in shape.statuses},
            **({"429": _response(OVER_LIMIT, PROBLEM, schemas[Problem]) | RETRY_AFTER} if shape.is_limited else {}),
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
