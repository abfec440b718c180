"""The API's one table of routes: what each takes and gives, and the scope that a key needs for it."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from schemas.envelope import Envelope
from service.documents.vectors import Search
from service.http import audit, batch, catalog, documents, events, health, metrics, operations, stream, view
from service.http.app_state import reply, state_of
from service.http.auth import guarded
from service.http.openapi import Operation, described
from service.intake.intake import Accepted
from service.operations.forget_redis import Forgotten, Target
from service.operations.operate import Operated


async def openapi(request: Request) -> Response:
    """This document: OpenAPI 3.1."""
    return reply(described(OPERATIONS, state_of(request).catalog))


OPERATIONS: Final = (
    Operation(
        "POST", "/events", "ingest", events.post_event,
        body=Envelope, takes=events.MEDIA_TYPES, answer=Accepted, statuses=(202,), slash=True, is_limited=True,
    ),
    Operation(
        "GET", "/events", "read", events.list_events,
        query=events.Filter, answer=view.EventList, slash=True,
    ),
    Operation(
        "POST", "/events/batch", "ingest", batch.post_batch,
        body=list[Envelope], takes=batch.MEDIA_TYPES,
        answer=batch.BatchAnswer, statuses=(202, 207), slash=True, is_limited=True,
    ),
    Operation("GET", "/events/{event_id}", "read", events.get_event, answer=view.EventView),
    Operation("GET", "/events/{event_id}/stream", "read", stream.follow_event, media="text/event-stream"),
    Operation(
        "POST", "/events/{event_id}/replay", "operate", operations.replay_event,
        body=operations.Replay, answer=operations.ReplayAnswer, statuses=(202,),
    ),
    Operation(
        "POST", "/events/{event_id}/cancel", "operate", operations.cancel_event,
        answer=operations.CancelAnswer, statuses=(202,),
    ),
    Operation(
        "GET", "/dead-letters", "read", operations.list_dead_letters,
        query=operations.Page, answer=operations.DeadLetterList, slash=True,
    ),
    Operation(
        "DELETE", "/dead-letters", "operate", operations.discard_dead_letters,
        body=operations.Which, answer=Operated, slash=True,
    ),
    Operation("GET", "/dead-letters/{dead_id:uuid}", "read", operations.get_dead_letter, answer=operations.DeadLetter),
    Operation(
        "POST", "/dead-letters/replay", "operate", operations.replay_dead_letters,
        body=operations.Which, answer=Operated,
    ),
    Operation("POST", "/forget", "admin", operations.forget, body=Target, answer=Forgotten, slash=True),
    Operation(
        "GET", "/operations", "admin", audit.list_operations,
        query=audit.Operations, answer=audit.OperationList, slash=True,
    ),
    Operation("GET", "/actors/{key:path}", "read", operations.get_actor, answer=operations.Actor),
    Operation(
        "POST", "/collections/{name}/search", "read", documents.search_collection,
        body=Search, answer=documents.Hits,
    ),
    Operation(
        "PUT", "/collections/{name}/documents", "documents", documents.put_documents,
        body=documents.Upsert, answer=documents.Upserted,
    ),
    Operation(
        "DELETE", "/collections/{name}/documents", "documents", documents.delete_documents,
        body=documents.Deletion, answer=documents.Deleted,
    ),
    Operation("GET", "/types", "read", catalog.list_types, answer=catalog.TypeList),
    Operation("GET", "/types/{type}/schema", "read", catalog.get_schema, media="application/schema+json"),
    Operation("GET", "/pipelines/{name}", "read", catalog.get_pipeline, answer=catalog.PipelineView),
    Operation("GET", "/prompts", "read", catalog.list_prompts, answer=catalog.PromptList),
    Operation(
        "POST", "/prompts/{name:path}/render", "read", catalog.render_prompt,
        body=catalog.Filled, answer=catalog.RenderedPrompt,
    ),
    Operation("GET", "/prompts/{name:path}", "read", catalog.get_prompt, answer=catalog.PromptView),
    Operation(
        "GET", "/prompt-stats", "read", catalog.get_stats,
        query=catalog.Period, answer=catalog.PromptStatsList,
    ),
    Operation("GET", "/workers", "read", health.list_workers, answer=health.WorkerList),
    Operation("GET", "/openapi.json", "read", openapi),
    Operation("GET", "/metrics", "open", metrics.metrics, media="text/plain"),
    Operation("GET", "/metrics/fleet", "open", metrics.fleet, media="text/plain"),
    Operation("GET", "/healthz", "open", health.healthz, answer=health.Health),
    Operation("GET", "/readyz", "open", health.readyz, answer=health.Ready),
)  # fmt: skip


def routes() -> list[Route]:
    """Of those with `slash` one with and one without it at the end: no redirect."""
    return [
        Route(path, guarded(operation.scope, operation.endpoint), methods=[operation.method])
        for operation in OPERATIONS
        for path in ((operation.path, f"{operation.path}/") if operation.slash else (operation.path,))
    ]
