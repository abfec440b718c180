"""The application: routes, and what lives as long as it does."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypedDict

from starlette.applications import Starlette
from starlette.routing import Route

import schemas.events
from schemas.catalog import Catalog, discover
from service.dashboard import pages
from service.embedded import running
from service.follow import Followers
from service.http import events, health, operations, stream, types
from service.http.door import Door
from service.http.problem import HANDLERS
from service.intake import open_intake
from service.resources import open_pool, open_redis
from service.settings import Settings, load
from service.supervise import supervised


class State(TypedDict):
    door: Door


def create_app(settings: Settings | None = None, catalog: Catalog | None = None) -> Starlette:
    """`uvicorn --factory service:create_app` reads the settings from the environment."""
    chosen = settings or running(load(os.environ))
    types = catalog or discover(schemas.events)
    return Starlette(routes=_routes(), lifespan=_lifespan(chosen, types), exception_handlers=dict(HANDLERS))


def _routes() -> list[Route]:
    return [
        *_both("/events", events.post_event, "POST"),
        *_both("/events", events.list_events, "GET"),
        Route("/events/{event_id}", events.get_event, methods=["GET"]),
        Route("/events/{event_id}/stream", stream.follow_event, methods=["GET"]),
        Route("/events/{event_id}/replay", operations.replay_event, methods=["POST"]),
        Route("/events/{event_id}/cancel", operations.cancel_event, methods=["POST"]),
        *_both("/dead-letters", operations.list_dead_letters, "GET"),
        *_both("/dead-letters", operations.discard_dead_letters, "DELETE"),
        Route("/dead-letters/{dead_id:uuid}", operations.get_dead_letter, methods=["GET"]),
        Route("/dead-letters/replay", operations.replay_dead_letters, methods=["POST"]),
        Route("/actors/{key:path}", operations.get_actor, methods=["GET"]),
        Route("/types", types.list_types, methods=["GET"]),
        Route("/types/{type}/schema", types.get_schema, methods=["GET"]),
        Route("/pipelines/{name}", types.get_pipeline, methods=["GET"]),
        Route("/workers", health.list_workers, methods=["GET"]),
        Route("/healthz", health.healthz, methods=["GET"]),
        Route("/readyz", health.readyz, methods=["GET"]),
        *pages.routes(),
    ]


def _both(path: str, endpoint: object, method: str) -> list[Route]:
    """With and without the slash at the end, no redirect."""
    return [Route(each, endpoint, methods=[method]) for each in (path, f"{path}/")]  # type: ignore[arg-type]


def _lifespan(settings: Settings, catalog: Catalog):  # type: ignore[no-untyped-def]
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[State]:
        async with AsyncExitStack() as stack:
            redis = await stack.enter_async_context(open_redis(settings))
            pool = await stack.enter_async_context(open_pool(settings, "api"))
            intake = await stack.enter_async_context(open_intake(settings, catalog, redis))
            followers = Followers(redis, pool, settings.streams_max)
            await stack.enter_async_context(supervised({"doorbells": followers.listen, "standings": followers.poll}))
            app.state.leave = followers.leave
            yield State(door=Door(settings, catalog, intake, pool, redis, followers))

    return lifespan
