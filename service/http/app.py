"""The application: routes, and what lives as long as it does."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypedDict

from starlette.applications import Starlette
from starlette.middleware import Middleware

import prompts
import schemas.events
from prompts import Prompts
from schemas.catalog import Catalog, discover
from service.access.audit import Audit
from service.access.keys import open_keys
from service.access.quotas import Quotas
from service.core.metrics import Meters
from service.core.readiness import Readiness
from service.core.redis_owner import RedisOwner
from service.core.servers import open_pool, open_redis
from service.core.settings import Settings, load
from service.core.streams import names_of
from service.core.supervise import supervised
from service.core.turns import listing, querying
from service.dashboard import pages
from service.documents.vectors import searching
from service.embedded import running
from service.feed.listeners import Listeners
from service.http import metrics
from service.http.answers import ANSWERS_MAX, in_pieces
from service.http.app_state import AppState
from service.http.audit import audited
from service.http.body_allowance import BodyAllowance, Shares, with_bodies_released
from service.http.metrics import MetricsPages
from service.http.problem import HANDLERS
from service.http.routes import routes
from service.intake.intake import open_intake


class State(TypedDict):
    app_state: AppState


def create_app(settings: Settings | None = None, catalog: Catalog | None = None) -> Starlette:
    """`uvicorn --factory service:create_app` reads the settings from the environment."""
    chosen = settings or running(load(os.environ))
    types = catalog or discover(schemas.events)
    library = prompts.load()
    return Starlette(
        routes=[*routes(), *pages.routes()],
        lifespan=_lifespan(chosen, types, library),
        exception_handlers=HANDLERS,
        middleware=[
            Middleware(metrics.counted),
            Middleware(audited),
            Middleware(with_bodies_released),
            Middleware(in_pieces),
        ],
    )


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
            turns = (querying(settings, meters), listing(meters), searching(settings, meters))
            shares = (Shares(settings.streams_max), Shares(ANSWERS_MAX), BodyAllowance())
            parts = (intake, keys, pool, *turns, redis, meters, metrics_pages, listeners, *shares, readiness, owner)
            all_parts = (*parts, quotas, Audit(meters), asyncio.Lock())
            yield State(app_state=AppState(settings, catalog, library, *all_parts))

    return lifespan
