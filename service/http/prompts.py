"""`/prompts`: what models are told, version by version; `/prompt-stats`: how each version fared."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from msgspec import Struct, convert, json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

import sql
from prompts import Prompt, PromptError, Prompts, Target, render
from schemas.text import BadEvent
from service.http.auth import caller
from service.http.door import door, reply
from service.http.events import ACQUIRE_TIMEOUT_S, Moment, Text, read_body

PERIOD: Final = timedelta(days=1)
PERIOD_MAX: Final = timedelta(days=31)
SQL: Final = sql.queries("prompts")


class Period(Struct, frozen=True, forbid_unknown_fields=True):
    """The query of `GET /prompt-stats`: the last day, unless it says something else."""

    name: Text | None = None
    since: Moment | None = None
    until: Moment | None = None


class Filled(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a rendering."""

    variables: dict[str, Any] = {}


async def list_prompts(request: Request) -> Response:
    told = door(request).prompts
    return reply({"items": [_item(told, name) for name in sorted(told.versions)]})


async def get_prompt(request: Request) -> Response:
    """The newest version, or the one that is named: `tickets/classify@1`."""
    told, prompt = door(request).prompts, _prompt(request)
    async with door(request).pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
        rows = await connection.fetch(SQL["used"], [prompt.name], [prompt.version])
    head = msgspec.to_builtins(prompt.head)
    used = rows[0]["first_used"] if rows else None
    facts = {"version": prompt.version, "hash": prompt.hash, "first_used": used, **head, "text": prompt.text}
    return reply({**_item(told, prompt.name), **facts, "models": _models(told.chain(prompt.model))})


async def render_prompt(request: Request) -> Response:
    """What a model would be told with these variables."""
    prompt = _prompt(request)
    body = await read_body(request, door(request).settings.body_max)
    try:
        asked = json.decode(body or b"{}", type=Filled)
    except msgspec.ValidationError as error:
        raise BadEvent(422, str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadEvent(400, str(error)) from error
    try:
        rendered = render(prompt, asked.variables)
    except PromptError as error:
        raise BadEvent(422, str(error), "$.variables") from error
    return reply({"name": prompt.name, "version": prompt.version, **msgspec.to_builtins(rendered)})


async def get_stats(request: Request) -> Response:
    """Of each version the calls, their outcomes, tokens, cost and times; `(embed)` are embeddings."""
    try:
        asked = convert(dict(request.query_params), Period, strict=False)
    except msgspec.ValidationError as error:
        raise HTTPException(400, f"the query does not fit: {error}") from error
    until = asked.until or datetime.now(UTC)
    since = asked.since or until - PERIOD
    if not timedelta(0) < until - since <= PERIOD_MAX:
        raise HTTPException(400, f"since is before until, by {PERIOD_MAX.days} days at most")
    async with door(request).pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
        rows = await connection.fetch(SQL["stats"], caller(request).tenant, since, until, asked.name)
    return reply({"since": since, "until": until, "items": [dict(row) for row in rows]})


def _prompt(request: Request) -> Prompt:
    try:
        return door(request).prompts.get(request.path_params["name"])
    except PromptError as error:
        raise HTTPException(404, str(error)) from error


def _item(told: Prompts, name: str) -> dict[str, Any]:
    newest = told.get(name)
    return {
        "name": name,
        "versions": sorted(told.versions[name]),
        "model": newest.model,
        "models": _models(told.chain(newest.model)),
    }


def _models(chain: tuple[Target, ...]) -> list[str]:
    return [f"{target.provider} {target.model}" for target in chain]
