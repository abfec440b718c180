"""Documents in Postgres, found by vector (pgvector), by their words (full text search), or by both."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from math import hypot
from typing import Annotated, Any, Final, Literal, TypeVar

from msgspec import Meta, Struct, json
from pgvector import Vector

import sql
from schemas.text import BadEvent
from service.core.errors import Outage, text_of
from service.core.metrics import Meters
from service.core.servers import POSTGRES_ERRORS, Pool, postgres_passes
from service.core.settings import Settings
from service.core.time_limit import our_wait
from service.core.turns import Turns
from service.documents.embedder import embed
from service.documents.filters import compiled

T = TypeVar("T")

SEARCH_TIMEOUT_S: Final = 5.0  # a search, in Postgres
TIMEOUT_S: Final = 10.0  # every other query of a collection
WAIT_S: Final = 5.0  # for a turn
LENGTHS: Final = (1e-12, 1e12)
DELETE_BATCH: Final = 1000
SOURCE: Final = "source"  # in the metadata of a document: who wrote it, which its writer can't choose
FOUND_MAX: Final = 4 << 20  # bytes of documents that a search returns, unless the first is larger
_SQL: Final = sql.queries("vectors")

Mode = Literal["vector", "keyword", "hybrid"]
Numbers = Annotated[list[float], Meta(min_length=1, max_length=16_000)]


class Document(Struct, frozen=True):
    """A text to keep in a collection, with its vector. Without one, nothing is kept under this id any more."""

    collection: str
    id: str
    text: str = ""
    embedding: list[float] | None = None
    metadata: dict[str, Any] = {}


class Search(Struct, frozen=True, forbid_unknown_fields=True):
    """What is looked for: `query` by its words, and by its vector where no `vector` is given."""

    query: Annotated[str, Meta(min_length=1, max_length=4_000)] | None = None
    vector: Numbers | None = None
    mode: Mode = "vector"
    k: Annotated[int, Meta(ge=1, le=100)] = 10
    filter: dict[str, Any] = {}
    min_score: float | None = None

    @property
    def candidates(self) -> int:
        return max(50, 5 * self.k) if self.mode == "hybrid" else self.k


class Found(Struct, frozen=True):
    """A document that was found.

    `score` is what it is ranked by. `scores` has the cosine similarity as `vector`, 1 for the same direction, and the
    rank of its words as `keyword`, each where it was found that way.
    """

    id: str
    score: float
    scores: dict[str, float]
    text: str
    metadata: dict[str, Any]

    @property
    def label(self) -> str:
        return str(self.metadata.get("label", ""))


class Vectors:
    """Reads and writes through the pool of its process, in turns: those of `caller`, or of the tenant.

    Its methods raise Outage while Postgres is away or takes too long; Unavailable or TooMany where no turn comes.
    """

    def __init__(self, pool: Pool, searches: Turns, caller: str = "") -> None:
        self._pool: Final = pool
        self._searches: Final = searches
        self._caller: Final = caller

    async def search(
        self, tenant: str, collection: str, search: Search, sources: Sequence[str] | None = None
    ) -> tuple[list[Found], int]:
        """Best first, up to FOUND_MAX; and how many are left out. Raises BadEvent 422 for what can't be looked for."""
        _check(search)
        where = compiled(search.filter)
        limits = (sources and list(sources), where and where.path, where and where.values)
        with our_wait():
            async with self._searches.turn(self._caller or tenant):
                # In the turn: to embed takes a millisecond, in which nobody else runs.
                vector, words = _looked_for(search)
                vector_text = vector and Vector(vector).to_text()
                by = (vector_text, words, search.candidates, search.k, search.min_score, FOUND_MAX)
                query = self._pool.fetch(_SQL["search"], tenant, collection, *limits, *by)
                rows = await _in_time(query, SEARCH_TIMEOUT_S)
                if vector and all(row["vector"] is None for row in rows):
                    await self._check_dimensions(tenant, collection, len(vector))
        return [_row_found(row) for row in rows], (rows[0]["among"] - len(rows) if rows else 0)

    async def upsert(self, tenant: str, documents: Sequence[Document], actor: str) -> None:
        """Each (collection, id) at most once; `actor` goes on record."""
        rows = [
            (
                document.collection,
                document.id,
                document.text,
                Vector(document.embedding).to_text(),
                json.encode(document.metadata).decode(),
            )
            for document in documents
        ]
        await _in_time(self._pool.execute(_SQL["upsert"], tenant, *zip(*rows, strict=True), actor))

    async def ids(
        self, tenant: str, collection: str, ids: Sequence[str] | None, which: Mapping[str, Any], most: int
    ) -> list[str]:
        """Those that `delete` would delete now, `most` at most. Raises BadEvent 422."""
        where = compiled(which)
        filters = (tenant, collection, ids and list(ids), where and where.path, where and where.values, most)
        with our_wait():
            async with self._searches.turn(self._caller or tenant):
                return [row["id"] for row in await _in_time(self._pool.fetch(_SQL["ids"], *filters))]

    async def delete(
        self, tenant: str, collection: str, ids: Sequence[str] | None, which: Mapping[str, Any], actor: str
    ) -> int:
        """How many there were with one of `ids`, where given, that fit the filter `which`. Raises BadEvent 422."""
        where, deleted = compiled(which), 0
        filters = (tenant, collection, ids and list(ids), where and where.path, where and where.values)
        while True:
            async with self._searches.turn(self._caller or tenant):
                gone: int = await _in_time(self._pool.fetchval(_SQL["delete"], *filters, DELETE_BATCH, actor))
            deleted += gone
            if gone < DELETE_BATCH:
                return deleted

    async def _check_dimensions(self, tenant: str, collection: str, dimensions: int) -> None:
        rows = await _in_time(self._pool.fetch(_SQL["dimensions"], tenant, collection))
        there = [row["dimensions"] for row in rows]
        if there and dimensions not in there:
            sizes = f"the vectors in {collection} have {' or '.join(map(str, there))} numbers, this one {dimensions}"
            raise BadEvent(422, f"{sizes}: give a `vector` of the model that made them", "$.vector")


def check_vector(vector: Sequence[float], path: str) -> None:
    """Raises BadEvent 422 where no cosine can be told in float32."""
    if not LENGTHS[0] <= hypot(*vector) <= LENGTHS[1]:
        raise BadEvent(422, f"a vector's length is between {LENGTHS[0]:g} and {LENGTHS[1]:g}", path)


def _check(search: Search) -> None:
    """What is asked for has one reading, else it is refused."""
    if search.mode != "vector" and search.query is None:
        raise BadEvent(422, f"mode {search.mode} looks for the words of `query`", "$.query")
    if search.mode == "keyword" and search.vector is not None:
        raise BadEvent(422, "mode keyword looks at no vector: leave it out, or ask for hybrid", "$.vector")
    if search.mode == "vector" and (search.query is None) == (search.vector is None):
        raise BadEvent(422, "give `query` or `vector`, one of them (hybrid takes both)", "$")
    if search.vector is not None:
        check_vector(search.vector, "$.vector")


def _looked_for(search: Search) -> tuple[list[float] | None, str | None]:
    """Its vector and its words."""
    words = None if search.mode == "vector" else search.query
    return (None if search.mode == "keyword" else search.vector or embed(search.query or "")), words


def _row_found(row: Any) -> Found:
    scores = {name: row[name] for name in ("vector", "keyword") if row[name] is not None}
    return Found(row["id"], row["score"], scores, row["text"], json.decode(row["metadata"]))


def searching(settings: Settings, meters: Meters) -> Turns:
    """The turns of searches in one process: half of what CALLBOARD_POOL lets it have of Postgres."""
    return Turns("searches", max(1, settings.pool // 2), WAIT_S, meters)


async def _in_time(query: Awaitable[T], timeout_s: float = TIMEOUT_S) -> T:
    try:
        with our_wait():
            async with asyncio.timeout(timeout_s):
                return await query
    except POSTGRES_ERRORS as error:
        if not postgres_passes(error):
            raise
        why = f"it took more than {timeout_s:g} s" if isinstance(error, TimeoutError) else text_of(error)
        raise Outage(f"Postgres did not answer what is asked of a collection: {why}") from error
