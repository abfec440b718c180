"""`/types`, `/pipelines`, `/prompts`: what can be said, what is done about it, what models are told."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from msgspec import Struct, json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

import sql
from prompts import Prompt, PromptError, Prompts, Target, render
from schemas.envelope import Moment
from schemas.text import BadEvent
from service.http.app_state import Text, asked_by_body, asked_by_query, fetch, raw, reply, state_of
from service.http.auth import caller

PERIOD: Final = timedelta(days=1)
PERIOD_MAX: Final = timedelta(days=31)
SQL: Final = {**sql.queries("catalog"), **sql.queries("prompt_versions")}


class Period(Struct, frozen=True, forbid_unknown_fields=True):
    """The query of `GET /prompt-stats`: the last day, unless it says something else."""

    name: Text | None = None
    since: Moment | None = None
    until: Moment | None = None


class Filled(Struct, frozen=True, forbid_unknown_fields=True):
    variables: dict[str, Any] = {}


async def list_types(request: Request) -> Response:
    """Every event type, with its pipeline and those that follow it where a worker has told them."""
    rows = await fetch(request, SQL["pipelines"])
    pipelines = {row["type"]: row["name"] for row in rows if row["after"] is None}
    items = [
        {
            "type": name,
            "pipeline": pipelines.get(name),
            "follow_ups": [row["name"] for row in rows if row["after"] is not None and row["type"] == name],
            "schema": f"/types/{name}/schema",
        }
        for name in sorted(state_of(request).catalog)
    ]
    return reply({"items": items})


async def get_schema(request: Request) -> Response:
    kind = state_of(request).catalog.get(request.path_params["type"])
    if kind is None:
        raise HTTPException(404, f"no type {request.path_params['type']}")
    return Response(json.encode(kind.schema()), media_type="application/schema+json")


async def get_pipeline(request: Request) -> Response:
    """The graph of a pipeline, as workers wrote it when they started."""
    rows = await fetch(request, SQL["pipeline"], request.path_params["name"])
    if not rows:
        raise HTTPException(404, f"no pipeline {request.path_params['name']}")
    (row,) = rows
    pipeline = {name: row[name] for name in ("name", "type", "version", "after", "follow_ups")}
    return reply({**pipeline, "nodes": raw(row["nodes"]), "edges": raw(row["edges"])})


async def list_prompts(request: Request) -> Response:
    prompts = state_of(request).prompts
    return reply({"items": [_item(prompts, name) for name in sorted(prompts.versions)]})


async def get_prompt(request: Request) -> Response:
    """The newest version, or the one that is named: `tickets/classify@1`."""
    prompts, prompt = state_of(request).prompts, _prompt(request)
    rows = await fetch(request, SQL["used"], [prompt.name], [prompt.version])
    head = msgspec.to_builtins(prompt.head)
    used = rows[0]["first_used"] if rows else None
    facts = {"version": prompt.version, "hash": prompt.hash, "first_used": used, **head, "text": prompt.text}
    return reply({**_item(prompts, prompt.name), **facts, "models": _models(prompts.chain(prompt.model))})


async def render_prompt(request: Request) -> Response:
    prompt = _prompt(request)
    body = await asked_by_body(request, Filled)
    try:
        rendered = render(prompt, body.variables)
    except PromptError as error:
        raise BadEvent(422, str(error), "$.variables") from error
    return reply({"name": prompt.name, "version": prompt.version, **msgspec.to_builtins(rendered)})


async def get_stats(request: Request) -> Response:
    """Of each version the calls, their outcomes, tokens, cost and times; `(embed)` are embeddings."""
    period = asked_by_query(request, Period)
    until = period.until or datetime.now(UTC)
    since = period.since or (until - PERIOD if until.year > 1 else until)
    if not timedelta(0) < until - since <= PERIOD_MAX:
        raise HTTPException(400, f"since is before until, by {PERIOD_MAX.days} days at most")
    rows = await fetch(request, SQL["stats"], caller(request).tenant, since, until, period.name)
    return reply({"since": since, "until": until, "items": [dict(row) for row in rows]})


def _prompt(request: Request) -> Prompt:
    try:
        return state_of(request).prompts.get(request.path_params["name"])
    except PromptError as error:
        raise HTTPException(404, str(error)) from error


def _item(prompts: Prompts, name: str) -> dict[str, Any]:
    newest = prompts.get(name)
    return {
        "name": name,
        "versions": sorted(prompts.versions[name]),
        "model": newest.model,
        "models": _models(prompts.chain(newest.model)),
    }


def _models(chain: tuple[Target, ...]) -> list[str]:
    return [f"{target.provider} {target.model}" for target in chain]
