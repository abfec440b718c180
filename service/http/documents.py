"""`/collections`: documents that are searched, by those who are no pipeline."""

import asyncio
from collections.abc import Awaitable
from typing import Annotated, Any, Final, TypeVar

import asyncpg
from msgspec import Meta, Struct
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from schemas.text import BadEvent
from service.documents.embedder import embed
from service.documents.vectors import SOURCE, Document, Found, Numbers, Search, Vectors, check_vector
from service.http.app_state import asked_by_body, pool_of, reply, state_of
from service.http.audit import note
from service.http.auth import caller
from service.http.body_allowance import caller_of

T = TypeVar("T")

NAME_MAX: Final = 200


class Written(Struct, frozen=True, forbid_unknown_fields=True):
    """A document: embedded here where it has no `vector`."""

    id: Annotated[str, Meta(min_length=1, max_length=300)]
    text: Annotated[str, Meta(min_length=1)]
    metadata: dict[str, Any] = {}
    vector: Numbers | None = None


class Upsert(Struct, frozen=True, forbid_unknown_fields=True):
    documents: Annotated[list[Written], Meta(max_length=1000)]


class Deletion(Struct, frozen=True, forbid_unknown_fields=True):
    """Documents that have one of `ids`, where given, and fit the filter."""

    ids: Annotated[list[str], Meta(max_length=10_000)] | None = None
    filter: dict[str, Any] = {}


class Hits(Struct, frozen=True):
    """`left_out`: how many more documents fit the search, for which this answer has no room."""

    items: list[Found]
    left_out: int = 0


class Upserted(Struct, frozen=True):
    upserted: int


class Deleted(Struct, frozen=True):
    deleted: int


async def search_collection(request: Request) -> Response:
    """The documents that are nearest, best first."""
    search = await asked_by_body(request, Search)
    return reply(Hits(*await _vectors(request).search(caller(request).tenant, _collection(request), search)))


async def put_documents(request: Request) -> Response:
    """Keeps documents, in the place of those with the same id; of two in one request the last one counts."""
    collection, upsert, who = _collection(request), await asked_by_body(request, Upsert), caller(request)
    documents, source = {}, f"key {who.actor}"
    for index, new in enumerate(upsert.documents):
        if new.vector is not None:
            check_vector(new.vector, f"$.documents[{index}].vector")
        if new.metadata.get(SOURCE, source) != source:
            rule = f"`{SOURCE}` says who wrote a document, here {source!r}: leave it out, or call yours something else"
            raise BadEvent(422, rule, f"$.documents[{index}].metadata.{SOURCE}")
        vector = new.vector or embed(new.text)
        documents[new.id] = Document(collection, new.id, new.text, vector, {**new.metadata, SOURCE: source})
        await asyncio.sleep(0)  # embedding takes up to some milliseconds: others have their turn
    if documents:
        await _storable(_vectors(request).upsert(who.tenant, list(documents.values()), who.actor))
        note(request, "write_documents", who.actor, 200)
    return reply(Upserted(len(documents)))


async def delete_documents(request: Request) -> Response:
    """Deletes by `ids`, by `filter`, or those that fit both."""
    collection, deletion, who = _collection(request), await asked_by_body(request, Deletion), caller(request)
    if deletion.ids is None and not deletion.filter:
        raise BadEvent(400, "name `ids` or a `filter`: everything at once is asked for by none")
    deleted = await _vectors(request).delete(who.tenant, collection, deletion.ids, deletion.filter, who.actor)
    note(request, "delete_documents", who.actor, 200)
    return reply(Deleted(deleted))


def _vectors(request: Request) -> Vectors:
    return Vectors(pool_of(request), state_of(request).searches, caller_of(request.scope))


def _collection(request: Request) -> str:
    name: str = request.path_params["name"]
    if len(name) > NAME_MAX or "\0" in name:
        raise HTTPException(404, f"a collection's name has up to {NAME_MAX} characters, NUL not among them")
    return name


async def _storable(written: Awaitable[T]) -> T:
    try:
        return await written
    except (asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
        raise BadEvent(422, f"can't be stored: {error}", "$.documents") from error
