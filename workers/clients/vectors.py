"""Vector search in Postgres (pgvector)."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct, json
from pgvector import Vector

import sql
from service.errors import Outage
from service.resources import POSTGRES_ERRORS, Pool, postgres_passes

SEARCH_TIMEOUT_S: Final = 10.0
_SQL: Final = sql.queries("vectors")


class Document(Struct, frozen=True):
    """A text to keep in a collection, with its vector."""

    collection: str
    id: str
    text: str
    embedding: list[float]
    metadata: dict[str, str]


class Found(Struct, frozen=True):
    """A neighbour: `score` is the cosine similarity, 1 for the same direction."""

    id: str
    text: str
    score: float
    metadata: dict[str, Any]

    @property
    def label(self) -> str:
        return str(self.metadata.get("label", ""))


class Vectors:
    """Searches through the worker's pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool: Final = pool

    async def search(
        self, tenant: str, collection: str, vector: list[float], k: int, sources: Sequence[str] | None = None
    ) -> list[Found]:
        """Raises Outage while Postgres is away."""
        asked = (tenant, collection, Vector(vector).to_text(), list(sources) if sources is not None else None, k)
        try:
            async with asyncio.timeout(SEARCH_TIMEOUT_S):
                rows = await self._pool.fetch(_SQL["nearest"], *asked)
        except POSTGRES_ERRORS as error:
            if not postgres_passes(error):
                raise
            raise Outage(f"Postgres did not answer a search in {collection}: {error}") from error
        return [Found(row["id"], row["text"], row["score"], json.decode(row["metadata"])) for row in rows]
