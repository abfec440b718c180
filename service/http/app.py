"""The application: routes, and what lives as long as it does."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypedDict

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

import prompts
import schemas.events
from prompts import Prompts
from schemas.catalog import Catalog, discover
from service.audit import Audit
from service.dashboard import pages
from service.embedded import running
from service.http import batch, documents, events, health, metrics, openapi, operations, stream
from service.http import catalog as catalogue
from service.http.answers import ANSWERS_MAX, in_pieces
from service.http.app_state import AppState
from service.http.audit import audited, list_operations
from service.http.auth import Endpoint, Need, guarded
from service.http.body_allowance import BodyAllowance, Shares, with_bodies_released
from service.http.metrics import MetricsPages
from service.http.problem import HANDLERS
from service.intake import open_intake
from service.keys import open_keys
from service.listeners import Listeners
from service.meters import Meters
from service.quotas import Quotas
from service.readiness import Readiness
from service.redis_owner import RedisOwner
from service.resources import open_pool, open_redis
from service.settings import Settings, load
from service.stream import names_of
from service.supervise import supervised
from service.turns import querying
from workers.clients.vectors import searching


class State(TypedDict):
    app_state: AppState


def create_app(settings: Settings | None = None, catalog: Catalog | None = None) -> Starlette:
    """`uvicorn --factory service:create_app` reads the settings from the environment."""
    chosen = settings or running(load(os.environ))
    types = catalog or discover(schemas.events)
    library = prompts.load()
    return Starlette(
        routes=_routes(),
        lifespan=_lifespan(chosen, types, library),
        exception_handlers=HANDLERS,
        middleware=[
            Middleware(metrics.counted),
            Middleware(audited),
            Middleware(with_bodies_released),
            Middleware(in_pieces),
        ],
    )


def _routes() -> list[Route]:
    """Each with the scope that a key needs for it."""
    return [
        *_both("/events", "POST", "ingest", events.post_event),
        *_both("/events", "GET", "read", events.list_events),
        *_both("/events/batch", "POST", "ingest", batch.post_batch),
        _at("/events/{event_id}", "GET", "read", events.get_event),
        _at("/events/{event_id}/stream", "GET", "read", stream.follow_event),
        _at("/events/{event_id}/replay", "POST", "operate", operations.replay_event),
        _at("/events/{event_id}/cancel", "POST", "operate", operations.cancel_event),
        *_both("/dead-letters", "GET", "read", operations.list_dead_letters),
        *_both("/dead-letters", "DELETE", "operate", operations.discard_dead_letters),
        _at("/dead-letters/{dead_id:uuid}", "GET", "read", operations.get_dead_letter),
        _at("/dead-letters/replay", "POST", "operate", operations.replay_dead_letters),
        *_both("/forget", "POST", "admin", operations.forget),
        *_both("/operations", "GET", "admin", list_operations),
        _at("/actors/{key:path}", "GET", "read", operations.get_actor),
        _at("/collections/{name}/search", "POST", "read", documents.search_collection),
        _at("/collections/{name}/documents", "PUT", "documents", documents.put_documents),
        _at("/collections/{name}/documents", "DELETE", "documents", documents.delete_documents),
        _at("/types", "GET", "read", catalogue.list_types),
        _at("/types/{type}/schema", "GET", "read", catalogue.get_schema),
        _at("/pipelines/{name}", "GET", "read", catalogue.get_pipeline),
        _at("/prompts", "GET", "read", catalogue.list_prompts),
        _at("/prompts/{name:path}/render", "POST", "read", catalogue.render_prompt),
        _at("/prompts/{name:path}", "GET", "read", catalogue.get_prompt),
        _at("/prompt-stats", "GET", "read", catalogue.get_stats),
        _at("/workers", "GET", "read", health.list_workers),
        _at("/openapi.json", "GET", "read", openapi.openapi),
        _at("/metrics", "GET", "open", metrics.metrics),
        _at("/metrics/fleet", "GET", "open", metrics.fleet),
        _at("/healthz", "GET", "open", health.healthz),
        _at("/readyz", "GET", "open", health.readyz),
        *pages.routes(),
    ]


def _at(path: str, method: str, need: Need, endpoint: Endpoint) -> Route:
    return Route(path, guarded(need, endpoint), methods=[method])


def _both(path: str, method: str, need: Need, endpoint: Endpoint) -> list[Route]:
    """With and without the slash at the end, no redirect."""
    return [_at(form, method, need, endpoint) for form in (path, f"{path}/")]


def _lifespan(settings: Settings, catalog: Catalog, library: Prompts):  # type: ignore[no-untyped-def]
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[State]:
        async with AsyncExitStack() as stack:
            owner, names = RedisOwner(settings), names_of(settings)
            redis = await stack.enter_async_context(open_redis(settings, guard=owner.guard))
            pool = await stack.enter_async_context(open_pool(settings, "api"))
            meters = Meters()
            await stack.enter_async_context(
                supervised({"loop": meters.watch_loop, "redis": lambda: owner.watch(redis)})
            )
            metrics_pages = MetricsPages(settings, redis, owner.state, meters)
            stack.callback(metrics_pages.close)
            intake = await stack.enter_async_context(open_intake(settings, catalog, redis, meters))
            keys = await stack.enter_async_context(open_keys(settings))
            quotas = Quotas(names, redis, pool)
            await stack.enter_async_context(supervised({"quotas": quotas.run}))
            listeners = Listeners(redis, names, pool)
            await stack.enter_async_context(supervised({"doorbells": listeners.listen, "standings": listeners.poll}))
            app.state.stop = listeners.stop
            readiness = Readiness(pool, intake.commits)
            turns = (querying(settings, meters), searching(settings, meters))
            shares = (Shares(settings.streams_max), Shares(ANSWERS_MAX), BodyAllowance())
            parts = (intake, keys, pool, *turns, redis, meters, metrics_pages, listeners, *shares, readiness, owner)
            all_parts = (*parts, quotas, Audit(meters), asyncio.Lock())
            yield State(app_state=AppState(settings, catalog, library, *all_parts))

    return lifespan
