"""`/types` and `/pipelines`: what can be said, and what is done about it."""

from typing import Final

from msgspec import json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

import sql
from service.http.door import door, raw, reply
from service.http.events import ACQUIRE_TIMEOUT_S

SQL: Final = sql.queries("read")


async def list_types(request: Request) -> Response:
    """Every event type, with its pipeline and those that follow it where a worker has told them."""
    async with door(request).pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
        rows = await connection.fetch(SQL["pipelines"])
    pipelines = {row["type"]: row["name"] for row in rows if row["follows"] is None}
    items = [
        {
            "type": name,
            "pipeline": pipelines.get(name),
            "followers": [row["name"] for row in rows if row["follows"] is not None and row["type"] == name],
            "schema": f"/types/{name}/schema",
        }
        for name in sorted(door(request).catalog)
    ]
    return reply({"items": items})


async def get_schema(request: Request) -> Response:
    """JSON Schema of the type's `data`."""
    kind = door(request).catalog.get(request.path_params["type"])
    if kind is None:
        raise HTTPException(404, f"no type {request.path_params['type']}")
    return Response(json.encode(kind.schema()), media_type="application/schema+json")


async def get_pipeline(request: Request) -> Response:
    """The graph of a pipeline, as workers wrote it when they started."""
    async with door(request).pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
        row = await connection.fetchrow(SQL["pipeline"], request.path_params["name"])
    if row is None:
        raise HTTPException(404, f"no pipeline {request.path_params['name']}")
    told = {name: row[name] for name in ("name", "type", "version", "follows", "followers")}
    return reply({**told, "nodes": raw(row["nodes"]), "edges": raw(row["edges"])})
