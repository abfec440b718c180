"""What a run reaches the outside by: `run.vectors` and `run.web`; and what it has of the engine."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from msgspec import Struct, field

from schemas.catalog import Catalog
from service.core.errors import WiringError
from service.core.settings import Settings
from service.documents.embedder import embed
from service.documents.vectors import SOURCE, Document, Found, Mode, Search, Vectors, check_vector
from workers.kit.flow import Node
from workers.kit.memory import Effects, Facts, Guard, Keep, check_in_step
from workers.kit.ordered import ordered
from workers.kit.resources import Open, Resources
from workers.kit.settings import Own
from workers.kit.state import Load, no_states
from workers.models.client import CallLog, Llm
from workers.web import Reply, Web

DELETE_MAX: Final = 10_000


class Clients(Struct, frozen=True):
    """What a worker opens or reads once, and every run uses."""

    llm: Llm
    vectors: Vectors
    web: Web
    resources: Resources = field(default_factory=Resources)
    own_settings: Own = {}


class RunDeps(Struct, frozen=True):
    """What the engine gives to one claim's run, and user code does not get."""

    claim: int
    clients: Clients
    call_log: Callable[[str, Guard], CallLog]
    facts: Facts
    settings: Settings
    keep: Keep
    limits_s: Mapping[Node, float] = {}
    resources: Sequence[Open] = ()
    catalog: Catalog = {}
    load: Load = no_states


class RunVectors(Struct, frozen=True):
    """`run.vectors`: search now; what is written becomes visible with the event's own end, in the same transaction."""

    _tenant: str
    _source: str
    _step_key: str
    _client: Vectors
    _effects: Effects

    async def search(
        self,
        collection: str,
        text: str | None = None,
        k: int = 10,
        sources: Sequence[str] | None = None,
        *,
        vector: Sequence[float] | None = None,
        mode: Mode = "vector",
        where: Mapping[str, Any] | None = None,
        min_score: float | None = None,
    ) -> list[Found]:
        """The `k` documents nearest to `text` or `vector`, best first; only those written for `sources`, where given.

        Where they are larger than 4 MiB together, it returns the best of them up to that size, but at least one.
        `mode`, `min_score` and `where`, there `filter`, are those of `POST /collections/{name}/search`.
        """
        check_in_step("run.vectors.search", self._step_key, self._effects)
        own = None if vector is None else list(vector)
        search = Search(text, own, mode, k, dict(where or {}), min_score)
        documents, _ = await self._client.search(self._tenant, collection, search, sources)
        return documents

    def upsert(
        self,
        collection: str,
        doc_id: str,
        text: str,
        metadata: Mapping[str, Any] | None = None,
        vector: Sequence[float] | None = None,
    ) -> None:
        """Keep `text` under `doc_id`, by its own `vector` or embedded; its metadata also gets the event's `source`.

        Raises WiringError for metadata with another `source`.
        """
        check_in_step("run.vectors.upsert", self._step_key, self._effects)
        if vector is not None:
            check_vector(vector, "$.vector")
        full_metadata = {SOURCE: self._source, **(metadata or {})}
        if full_metadata[SOURCE] != self._source:
            message = f"run.vectors.upsert({collection!r}, {doc_id!r}) gives a `{SOURCE}` in its metadata"
            raise WiringError(f"{message}. The event's own, {self._source!r}, stands there: call yours something else.")
        self._effects.documents.append(Document(collection, doc_id, text, list(vector or embed(text)), full_metadata))

    async def delete(
        self, collection: str, ids: Sequence[str] | None = None, where: Mapping[str, Any] | None = None
    ) -> int:
        """Delete those that are there now with one of `ids`, and fit `where`, each where given; gives their number.

        What the same event upserts, before or after, is kept. Raises ValueError for more than DELETE_MAX of them,
        WiringError where neither is given.
        """
        check_in_step("run.vectors.delete", self._step_key, self._effects)
        if ids is None and not where:
            raise WiringError(f"run.vectors.delete({collection!r}) names no document. Give `ids` or `where`.")
        ids_found = await self._client.ids(self._tenant, collection, ids, where or {}, DELETE_MAX + 1)
        if len(ids_found) > DELETE_MAX:
            raise ValueError(f"more than {DELETE_MAX:,} documents of {collection} would be deleted by one call")
        self._effects.documents.extend(Document(collection, found_document) for found_document in ids_found)
        return len(ids_found)


class RunWeb(Struct, frozen=True):
    """`run.web`: calls to the outside. They are at least once; the key of the step lets the other side drop repeats."""

    _event_id: UUID
    _step_key: str
    _client: Web
    _effects: Effects
    _outside: Guard

    async def post(self, url: str, json: object, timeout_s: float = 10.0) -> Reply:
        """POST with `Idempotency-Key: {event_id}/{step}`. Raises Outage for what passes, Reject for a refusal (4xx).

        A repeat has the same body: sets in `json` go out as lists in the order of their elements' JSON.
        """
        check_in_step("run.web.post", self._step_key, self._effects)
        key = f"{self._event_id}/{self._step_key}"
        await self._outside()
        return await self._client.post(url, json=ordered(json), idempotency_key=key, timeout_s=timeout_s)
