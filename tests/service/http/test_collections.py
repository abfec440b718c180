"""`/collections`: what is put there is found by meaning, by words and by both, and deleted by ids or filter."""

from typing import Any, Final

import httpx
import pytest

from service.core.roles import as_owner
from service.core.servers import open_pool
from service.core.settings import Settings
from tests.keys import bearer, make_key

TEXTS: Final = {
    "password": "Your password was rejected. Reset the password on the login page.",
    "login": "Logging in fails for accounts that were never activated.",
    "refund": "Refunds arrive within five days.",
    "pets": "Cats and dogs sleep most of the day.",
}
STARS: Final = {"password": 5, "login": 3, "refund": 4, "pets": 1}
HELP: Final = "/collections/help"


async def put(api: httpx.AsyncClient, *documents: dict[str, Any], at: str = HELP) -> httpx.Response:
    return await api.put(f"{at}/documents", json={"documents": documents})


async def ids(api: httpx.AsyncClient, at: str = HELP, **asked: Any) -> list[str]:
    answer = await api.post(f"{at}/search", json=asked)
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["items"]]


async def filled(api: httpx.AsyncClient) -> None:
    documents = [{"id": name, "text": text, "metadata": {"stars": STARS[name]}} for name, text in TEXTS.items()]
    assert (await put(api, *documents)).json() == {"upserted": 4}


async def test_by_meaning_by_words_and_by_both(api: httpx.AsyncClient) -> None:
    await filled(api)
    assert (await ids(api, query="my password is rejected at login"))[0] == "password"
    assert await ids(api, query="resetting passwords, please", mode="keyword") == ["password"]
    assert await ids(api, query="the and of", mode="keyword") == [], "nothing but stop words"
    assert await ids(api, query="dog OR refund'); --", mode="keyword") == ["pets", "refund"]
    answer = (await api.post(f"{HELP}/search", json={"query": "refunds within days", "mode": "hybrid", "k": 2})).json()
    first, second = answer["items"]
    assert list(first) == ["id", "score", "scores", "text", "metadata"]
    assert (first["id"], first["text"], first["metadata"]) == (
        "refund",
        TEXTS["refund"],
        {"stars": 4, "source": "key local"},
    )
    assert first["score"] == pytest.approx(2 / 61), "first in both lists"
    assert set(first["scores"]) == {"vector", "keyword"}
    assert second["score"] < first["score"]


async def test_the_best_k_from_a_score_on_where_the_filter_fits(api: httpx.AsyncClient) -> None:
    await filled(api)
    every = (await api.post(f"{HELP}/search", json={"query": TEXTS["pets"]})).json()["items"]
    scores = [each["score"] for each in every]
    assert (len(every), scores) == (4, sorted(scores, reverse=True))
    assert every[0]["score"] == pytest.approx(1) == every[0]["scores"]["vector"]
    assert len(await ids(api, query="a", k=3)) == 3
    assert await ids(api, query=TEXTS["pets"], min_score=0.99) == ["pets"]
    for mode in ("vector", "hybrid"):
        documents = await ids(api, query="day", mode=mode, filter={"stars": {"gt": 1, "lte": 4}})
        assert sorted(documents) == ["login", "refund"]
    assert await ids(api, query="day", mode="keyword", filter={"stars": {"in": [1, 5]}}) == ["pets"]


async def test_who_wrote_a_document_is_not_for_its_writer_to_say(settings: Settings, api: httpx.AsyncClient) -> None:
    """What a search takes as written by somebody was written by him."""
    mine, theirs = [await make_key(settings, "documents", "read") for _ in range(2)]
    source = f"key {mine[:11]}"
    document: dict[str, Any] = {"id": "D-1", "text": "Ask the support.", "metadata": {"lang": "en"}}
    api.headers.update(bearer(mine))
    assert (await put(api, document)).json() == {"upserted": 1}
    found = (await api.post(f"{HELP}/search", json={"query": "support"})).json()["items"][0]
    assert found["metadata"] == {"lang": "en", "source": source}
    assert (await put(api, {"id": "D-1", "text": found["text"], "metadata": found["metadata"]})).status_code == 200
    api.headers.update(bearer(theirs))
    refused = await put(api, document | {"metadata": {"source": source}})
    assert (refused.status_code, f"here 'key {theirs[:11]}'" in refused.json()["detail"]) == (422, True)
    assert (await put(api, document | {"text": "Ask me."})).status_code == 200
    assert await ids(api, query="support", filter={"source": {"eq": source}}) == []
    assert await ids(api, query="me", filter={"source": {"eq": f"key {theirs[:11]}"}}) == ["D-1"]


async def test_a_key_that_sends_events_writes_no_documents(settings: Settings, api: httpx.AsyncClient) -> None:
    api.headers.update(bearer(await make_key(settings, "ingest", "read", "operate")))
    for method, body in (("PUT", {"documents": [{"id": "D-1", "text": "a"}]}), ("DELETE", {"ids": ["D-1"]})):
        answer = await api.request(method, f"{HELP}/documents", json=body)
        assert (answer.status_code, "lacks the scope `documents`" in answer.json()["detail"]) == (403, True)


async def test_vectors_of_ones_own(api: httpx.AsyncClient) -> None:
    """A search sees those that have as many numbers as its own; where there are none such, it says what there is."""
    at = "/collections/own"
    axes = {"x": [1.0, 0.0, 0.0], "y": [0.0, 2.0, 0.0]}
    await put(api, *[{"id": name, "text": name, "vector": vector} for name, vector in axes.items()], at=at)
    assert await ids(api, at, vector=[0.1, 1, 0]) == ["y", "x"]
    assert await ids(api, at, vector=[0.1, 1, 0], query="x", mode="hybrid", k=1) == ["x"]
    refused = await api.post(f"{at}/search", json={"query": "x"})
    assert refused.status_code == 422
    assert "the vectors in own have 3 numbers, this one 384" in refused.json()["detail"]
    await put(api, {"id": "text", "text": "x"}, at=at)
    assert (await ids(api, at, query="x"), await ids(api, at, vector=[1, 0, 0])) == (["text"], ["x", "y"])


async def test_put_replaces_and_delete_takes_away(api: httpx.AsyncClient) -> None:
    await filled(api)
    twice: list[dict[str, Any]] = [
        {"id": "pets", "text": text, "metadata": {}} for text in ("Parrots talk.", "Goldfish say nothing.")
    ]
    assert (await put(api, *twice)).json() == {"upserted": 1}
    assert await ids(api, query="parrots cats", mode="keyword") == []
    assert await ids(api, query="goldfish", mode="keyword") == ["pets"]

    async def delete(**which: Any) -> Any:
        answer = await api.request("DELETE", f"{HELP}/documents", json=which)
        return answer.json() if answer.status_code == 200 else answer.status_code

    assert [await delete(), await delete(filter={})] == [400, 400]
    assert await delete(ids=["login", "nobody"], filter={"stars": {"eq": 9}}) == {"deleted": 0}
    assert await delete(ids=["login", "nobody"]) == {"deleted": 1}
    assert await delete(filter={"stars": {"gte": 4}}) == {"deleted": 2}
    assert await ids(api, query="anything") == ["pets"]
    assert await ids(api, "/collections/other", query="anything") == []


ASKED: Final[list[tuple[dict[str, Any], str]]] = [
    ({}, "$"),
    ({"query": "a", "vector": [1]}, "$"),
    ({"vector": [1], "mode": "keyword"}, "$.query"),
    ({"query": "a", "vector": [1], "mode": "keyword"}, "$.vector"),
    ({"vector": [1], "mode": "hybrid"}, "$.query"),
    ({"vector": []}, "$.vector"),
    ({"vector": [0, 0]}, "$.vector"),
    ({"vector": [1e300]}, "$.vector"),
    ({"vector": [1.0] * 16_001}, "$.vector"),
    ({"query": ""}, "$.query"),
    ({"query": "a" * 4_001}, "$.query"),
    ({"query": "a\0"}, "$.query"),
    ({"query": "a", "k": 0}, "$.k"),
    ({"query": "a", "k": 101}, "$.k"),
    ({"query": "a", "mode": "semantic"}, "$.mode"),
    ({"query": "a", "limit": 3}, "$.limit"),
    ({"query": "a", "filter": {"a": {"like": 1}}}, "$.filter.a.like"),
    ({"query": "a", "filter": {"a": {"gt": True}}}, "$.filter.a.gt"),
    ({"query": "a", "filter": {"a": {"eq": None}}}, "$.filter.a.eq"),
    ({"query": "a", "filter": {"a": {"in": 1}}}, "$.filter.a.in"),
    ({"query": "a", "filter": {"a": {"in": [0] * 1_001}}}, "$.filter.a.in"),
    ({"query": "a", "filter": {"a": {}}}, "$.filter.a"),
    ({"query": "a", "filter": {"not": {"a": {"eq": 1}}}}, "$.filter.not"),
    ({"query": "a", "filter": {"or": [{"a": {"eq": 1}}, {}]}}, "$.filter.or[1]"),
    ({"query": "a", "filter": {f"f{n}": {"eq": n} for n in range(101)}}, "$.filter.f100"),
]
DOCUMENTS: Final[list[tuple[dict[str, Any], str]]] = [
    ({"id": "", "text": "a"}, "$.documents[0].id"),
    ({"id": "i" * 301, "text": "a"}, "$.documents[0].id"),
    ({"id": "a", "text": ""}, "$.documents[0].text"),
    ({"id": "a", "text": "a\0"}, "$.documents[0].text"),
    ({"id": "a", "text": "a", "vector": [0, 0]}, "$.documents[0].vector"),
    ({"id": "a", "text": "a", "metadata": []}, "$.documents[0].metadata"),
    ({"id": "a", "text": "a", "metadata": {"source": "/seed"}}, "$.documents[0].metadata.source"),
    ({"id": "a", "text": "a", "metadata": {"source": ["http"]}}, "$.documents[0].metadata.source"),
]


async def test_what_is_asked_for_wrongly_is_told_where(api: httpx.AsyncClient) -> None:
    for asked, path in ASKED:
        answer = await api.post(f"{HELP}/search", json=asked)
        assert (answer.status_code, [error["path"] for error in answer.json()["errors"]]) == (422, [path]), asked


async def test_a_document_that_cannot_be_kept(api: httpx.AsyncClient) -> None:
    for document, path in DOCUMENTS:
        answer = await put(api, document)
        assert (answer.status_code, [error["path"] for error in answer.json()["errors"]]) == (422, [path]), document


async def test_bounds_of_a_put(api: httpx.AsyncClient, settings: Settings) -> None:
    assert (await put(api)).json() == {"upserted": 0}
    assert (await put(api, *[{"id": "a", "text": "a"}] * 1_001)).status_code == 422
    assert (await put(api, {"id": "a", "text": "a" * settings.body_max})).status_code == 413
    words = " ".join(f"{n:x}" for n in range(200_000))[: settings.body_max - 1_000]
    assert (await put(api, {"id": "a", "text": words})).json() == {"upserted": 1}, "more words than an index holds"
    for name in ("a" * 201, "%00"):
        assert (await put(api, {"id": "a", "text": "a"}, at=f"/collections/{name}")).status_code == 404


async def test_a_depth_of_eight_and_no_more(api: httpx.AsyncClient) -> None:
    await filled(api)
    which: dict[str, Any] = {"stars": {"gt": 4}}
    for _ in range(7):
        which = {"or": [which]}
    assert await ids(api, query="a", filter=which) == ["password"]
    refused = await api.post(f"{HELP}/search", json={"query": "a", "filter": {"and": [which]}})
    assert (refused.status_code, refused.json()["detail"]) == (422, "a filter is at most 8 levels deep")


async def test_while_postgres_is_not_ready_it_is_503(api: httpx.AsyncClient, settings: Settings) -> None:
    async with open_pool(as_owner(settings), "test") as pool:
        await pool.execute("alter table documents rename to elsewhere")
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "search", {"query": "a"}),
        ("PUT", "documents", {"documents": [{"id": "a", "text": "a"}]}),
        ("DELETE", "documents", {"ids": ["a"]}),
    ]
    for method, path, body in asked:
        answer = await api.request(method, f"{HELP}/{path}", json=body)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), answer.text
