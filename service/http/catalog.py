"""`/types`, `/pipelines`, `/prompts`: what can be said, what is done about it, what models are told."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from msgspec import Struct, field, json
from msgspec.structs import asdict
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


class TypeItem(Struct, frozen=True):
    type: str
    pipeline: str | None
    follow_ups: list[str]
    schema: str


class TypeList(Struct, frozen=True):
    items: list[TypeItem]


class Edge(Struct, frozen=True):
    from_: str = field(name="from")
    to: str
    label: str | None


class PipelineView(Struct, frozen=True):
    """The graph of a pipeline."""

    name: str
    type: str
    version: str
    after: str | None
    follow_ups: list[str]
    nodes: list[dict[str, Any]]
    edges: list[Edge]


class PromptItem(Struct, frozen=True):
    """`models`: the provider and model of each link of the chain, in the order they are asked."""

    name: str
    versions: list[int]
    model: str
    models: list[str]


class PromptList(Struct, frozen=True):
    items: list[PromptItem]


class PromptView(Struct, frozen=True):
    """One version of a prompt; `first_used` is null until a worker has asked by it."""

    name: str
    versions: list[int]
    model: str
    models: list[str]
    version: int
    hash: str
    first_used: Moment | None
    max_tokens: int
    variables: list[str]
    temperature: float | None
    text: str


class RenderedPrompt(Struct, frozen=True):
    name: str
    version: int
    system: str | None
    user: str


class PromptStats(Struct, frozen=True):
    """Calls by a version of a prompt, by outcome."""

    name: str
    version: int
    calls: int
    ok: int
    invalid: int
    unknown: int
    failed: int
    simulated: int
    tokens_in: int
    tokens_out: int
    cost_usd: float
    p50_ms: float | None
    p95_ms: float | None


class PromptStatsList(Struct, frozen=True):
    since: Moment
    until: Moment
    items: list[PromptStats]


async def list_types(request: Request) -> Response:
    """Every event type, with its pipeline and those that follow it where a worker has told them."""
    rows = await fetch(request, SQL["pipelines"])
    pipelines = {row["type"]: row["name"] for row in rows if row["after"] is None}
    items = [
        TypeItem(
            name,
            pipelines.get(name),
            [row["name"] for row in rows if row["after"] is not None and row["type"] == name],
            f"/types/{name}/schema",
        )
        for name in sorted(state_of(request).catalog)
    ]
    return reply(TypeList(items))


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
    return reply(PipelineView(**{**row, "nodes": raw(row["nodes"]), "edges": raw(row["edges"])}))


async def list_prompts(request: Request) -> Response:
    prompts = state_of(request).prompts
    return reply(PromptList([_item(prompts, name) for name in sorted(prompts.versions)]))


async def get_prompt(request: Request) -> Response:
    """The newest version, or the one that is named: `tickets/classify@1`."""
    prompts, prompt = state_of(request).prompts, _prompt(request)
    rows = await fetch(request, SQL["used"], [prompt.name], [prompt.version])
    used = rows[0]["first_used"] if rows else None
    item = asdict(_item(prompts, prompt.name)) | {"models": _models(prompts.chain(prompt.model))}
    facts = {"version": prompt.version, "hash": prompt.hash, "first_used": used, "text": prompt.text}
    return reply(PromptView(**item | asdict(prompt.head) | facts))


async def render_prompt(request: Request) -> Response:
    prompt = _prompt(request)
    body = await asked_by_body(request, Filled)
    try:
        rendered = render(prompt, body.variables)
    except PromptError as error:
        raise BadEvent(422, str(error), "$.variables") from error
    return reply(RenderedPrompt(prompt.name, prompt.version, rendered.system, rendered.user))


async def get_stats(request: Request) -> Response:
    """Of each version the calls, their outcomes, tokens, cost and times; `(embed)` are embeddings."""
    period = asked_by_query(request, Period)
    until = period.until or datetime.now(UTC)
    since = period.since or (until - PERIOD if until.year > 1 else until)
    if not timedelta(0) < until - since <= PERIOD_MAX:
        raise HTTPException(400, f"since is before until, by {PERIOD_MAX.days} days at most")
    rows = await fetch(request, SQL["stats"], caller(request).tenant, since, until, period.name)
    return reply(PromptStatsList(since, until, [PromptStats(**row) for row in rows]))


def _prompt(request: Request) -> Prompt:
    try:
        return state_of(request).prompts.get(request.path_params["name"])
    except PromptError as error:
        raise HTTPException(404, str(error)) from error


def _item(prompts: Prompts, name: str) -> PromptItem:
    newest = prompts.get(name)
    return PromptItem(name, sorted(prompts.versions[name]), newest.model, _models(prompts.chain(newest.model)))


def _models(chain: tuple[Target, ...]) -> list[str]:
    return [f"{target.provider} {target.model}" for target in chain]
