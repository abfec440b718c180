"""POST /events/batch: each event stands or falls by itself, in the order of the array."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import asyncpg
import httpx
import pytest
from msgspec import json
from msgspec.structs import replace

from schemas.text import DEPTH_MAX
from service.core.settings import Settings
from service.intake import store
from tests.board import serving
from tests.keys import AT_HOME, bearer, make_key

JSON: Final = "application/json"
LINES: Final = "application/x-ndjson"
BATCH: Final = "application/cloudevents-batch+json"
REST: Final = b'"type":"message.labelled","data":{"text":"a","label":"b"}'
GOOD: Final = b"{" + REST + b"}"
# What is wrong with one event and leaves the array an array.
POISON: Final = {
    "NUL": (rb'{"type":"message.labelled","data":{"text":"\u0000","label":"b"}}', 422),
    "half a surrogate pair": (rb'{"type":"message.labelled","data":{"text":"\ud800","label":"b"}}', 400),
    "the other half": (rb'{"type":"message.labelled","data":{"text":"\\\uDC00x","label":"b"}}', 400),
    "no UTF-8": (b'{"type":"message.labelled","data":{"text":"\xff","label":"b"}}', 400),
    "more than a double holds": (b'{"ext":1e400000,' + REST + b"}", 422),
    "more than Postgres holds": (b'{"ext":1e131000,' + REST + b"}", 422),
    "no object": (b"[]", 422),
    "null": (b"null", 422),
    "unknown type": (b'{"type":"no.such"}', 422),
}
# What only a line can be without harm to others.
BROKEN: Final = {
    "cut off": (GOOD[:-3], 400),
    "two in a line": (GOOD + b"," + GOOD, 400),
    "NaN": (b'{"ext":NaN,' + REST + b"}", 400),
    "deep": (b'{"ext":' + b"[" * DEPTH_MAX + b"]" * DEPTH_MAX + b"," + REST + b"}", 400),
    "100,000 deep": (b"[" * 100_000, 400),
    "a bare NUL": (b'{"ext":"\0",' + REST + b"}", 400),
}


async def post(http: httpx.AsyncClient, items: list[bytes], media: str = JSON, **headers: str) -> httpx.Response:
    body = b"\n".join(items) if media == LINES else b"[" + b",".join(items) + b"]"
    return await http.post("/events/batch", content=body, headers={"Content-Type": media, **headers})


def labelled(**attributes: Any) -> bytes:
    return json.encode({"type": "message.labelled", "data": {"text": "a", "label": "b"}, **attributes})


@pytest.mark.parametrize("media", [JSON, BATCH, LINES])
async def test_all_in_word_for_word(api: httpx.AsyncClient, media: str) -> None:
    items = [labelled(source="/a", id="1"), labelled(dueat="2100-01-01T00:00:00Z"), labelled(partitionkey="k")]
    response = await post(api, items, media)
    assert (response.status_code, response.headers["content-type"]) == (202, JSON)
    body = response.json()
    assert {name: body[name] for name in ("accepted", "rejected")} == {"accepted": 3, "rejected": 0}
    ids = [item["event_id"] for item in body["items"]]
    assert body["items"] == [
        {"index": 0, "event_id": ids[0], "id": "1", "source": "/a", "status": "queued", "duplicate": False},
        {"index": 1, "event_id": ids[1], "id": ids[1], "source": "/http", "status": "scheduled", "duplicate": False},
        {"index": 2, "event_id": ids[2], "id": ids[2], "source": "/http", "status": "queued", "duplicate": False},
    ]
    assert [item["event_id"] for item in (await api.get("/events")).json()["items"]] == ids[::-1]
    nothing = await post(api, [], media)
    assert (nothing.status_code, nothing.json()) == (202, {"accepted": 0, "rejected": 0, "items": []})


async def test_the_same_event_twice_in_one_batch(api: httpx.AsyncClient) -> None:
    items = [labelled(id="1"), labelled(id="1", time="2026-03-01T12:00:00Z"), labelled(id="1", subject="other")]
    first, again, other = (await post(api, items)).json()["items"]
    assert again == {**first, "index": 1, "duplicate": True}
    assert (other["index"], other["error"]["status"], other["error"]["errors"][0]["path"]) == (2, 409, "$.id")
    late = (await post(api, items[:2])).json()
    assert (late["accepted"], [item["duplicate"] for item in late["items"]]) == (2, [True, True])
    assert (await post(api, items[2:])).status_code == 207, "also when none is in"


@pytest.mark.parametrize(("media", "poison"), [(JSON, POISON), (LINES, POISON | BROKEN)])
async def test_poison_among_a_hundred(api: httpx.AsyncClient, media: str, poison: dict[str, tuple[bytes, int]]) -> None:
    for what, (wrong, status) in poison.items():
        response = await post(api, [*[GOOD] * 50, wrong, *[GOOD] * 49], media)
        body = response.json()
        assert (response.status_code, body["accepted"], body["rejected"]) == (207, 99, 1), what
        assert [item["index"] for item in body["items"]] == list(range(100))
        alone = (await api.post("/events", content=wrong, headers={"Content-Type": JSON})).json()
        assert body["items"][50] == {"index": 50, "error": {**alone, "instance": "/events/batch"}}, what
        assert alone["status"] == status, what


async def test_lines_stand_alone(api: httpx.AsyncClient) -> None:
    """Blank ones are none, whatever ends them."""
    body = b"\r\n" + GOOD + b"\r\n\r\n \t\n  " + GOOD + b'\n{"type":\n' + GOOD
    told = (await api.post("/events/batch/", content=body, headers={"Content-Type": LINES})).json()
    assert (told["accepted"], told["rejected"]) == (3, 1)
    assert [item["index"] for item in told["items"] if "error" in item] == [2]


async def test_what_is_no_array_is_refused_as_a_whole(api: httpx.AsyncClient) -> None:
    deep = BROKEN["deep"][0]
    for body in (b"", b" ", GOOD, b"null", b"[" + GOOD, b"[" + GOOD + b",]", b"[" + GOOD + b"] x", b"\xef\xbb\xbf[]"):
        response = await api.post("/events/batch", content=body, headers={"Content-Type": JSON})
        assert (response.status_code, response.json()["errors"][0]["path"]) == (400, "$"), body
    for wrong, path in ((deep, "$[1]"), (b"[" * 100_000, "$"), (BROKEN["NaN"][0], "$"), (GOOD[:-3], "$")):
        response = await post(api, [GOOD, wrong])
        assert (response.status_code, response.json()["errors"][0]["path"]) == (400, path), wrong[:80]
    as_deep_as_may_be = b'{"ext":' + b"[" * (DEPTH_MAX - 1) + b"]" * (DEPTH_MAX - 1) + b"," + REST + b"}"
    assert (await post(api, [GOOD, as_deep_as_may_be])).json()["items"][1]["error"]["status"] == 422
    assert len((await api.get("/events")).json()["items"]) == 1


async def test_other_media_and_a_key_for_many(api: httpx.AsyncClient) -> None:
    for media in ("application/cloudevents+json", "text/plain", ""):
        assert (await post(api, [GOOD], media)).status_code == 415
    told = await post(api, [GOOD], **{"Idempotency-Key": "k"})
    assert (told.status_code, "each event an `id`" in told.json()["detail"]) == (400, True)


@pytest.fixture
async def narrow(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """An API that takes 3 events in a batch, of 1,000 bytes each."""
    given = replace(settings, batch_max=3, body_max=1000)
    async with serving(given) as url, httpx.AsyncClient(headers=AT_HOME, base_url=url, timeout=30) as http:
        yield http


@pytest.mark.parametrize("media", [JSON, LINES])
async def test_too_many_and_too_large(narrow: httpx.AsyncClient, media: str) -> None:
    large = labelled(subject="s" * 100) + b" " * 900
    assert (await post(narrow, [GOOD] * 3, media)).status_code == 202
    many = await post(narrow, [GOOD] * 4, media)
    assert (many.status_code, "CALLBOARD_BATCH_MAX" in many.json()["detail"]) == (413, True)
    assert (await post(narrow, [GOOD + b" " * 4000], media)).status_code == 413
    if media == LINES:
        body = (await post(narrow, [GOOD, large, GOOD], media)).json()
        alone = (await narrow.post("/events", content=large, headers={"Content-Type": JSON})).json()
        assert body["items"][1] == {"index": 1, "error": {**alone, "instance": "/events/batch"}}
        assert (body["accepted"], alone["status"]) == (2, 413)


async def test_a_flood_of_nothing_is_refused_at_once(api: httpx.AsyncClient) -> None:
    for body, media in ((b"[" + b"[]," * 1_300_000 + b"[]]", JSON), (b"\n" * 4_000_000 + b"0\n" * 1001, LINES)):
        response = await api.post("/events/batch", content=body, headers={"Content-Type": media}, timeout=5)
        assert response.status_code == 413


async def test_the_places_of_a_key_are_in_the_arrays_order(api: httpx.AsyncClient, settings: Settings) -> None:
    """Of batches larger than a statement usually is, several at once, among others that share the writers."""
    items = [[labelled(partitionkey=f"k{n % 7}", source=f"/{b}", id=f"{n}") for n in range(700)] for b in range(3)]
    singles = [api.post("/events", content=GOOD, headers={"Content-Type": JSON}) for _ in range(20)]
    answers = await asyncio.gather(*(post(api, item) for item in items), *singles)
    assert {answer.status_code for answer in answers} == {202}
    connection = await asyncpg.connect(settings.database_url)
    rows = await connection.fetch(
        "select partition_key, source, id from work join events using (event_id) order by mailbox_seq"
    )
    await connection.close()
    for lane in {(row["partition_key"], row["source"]) for row in rows if row["partition_key"]}:
        numbers = [int(row["id"]) for row in rows if (row["partition_key"], row["source"]) == lane]
        assert numbers == sorted(numbers)
        assert len(numbers) == 100


async def test_a_batch_is_the_tenants_whose_key_it_has(settings: Settings) -> None:
    acme, other = [bearer(await make_key(settings, "ingest", "read", tenant=name)) for name in ("acme", "other")]
    async with serving(settings) as url, httpx.AsyncClient(headers=AT_HOME, base_url=url, timeout=30) as http:
        first, second = [(await post(http, [labelled(id="1")], **headers)).json() for headers in (acme, other)]
        assert (first["items"][0]["duplicate"], second["items"][0]["duplicate"]) == (False, False)
        event_id = first["items"][0]["event_id"]
        codes = [(await http.get(f"/events/{event_id}", headers=headers)).status_code for headers in (acme, other)]
        assert codes == [200, 404]


async def test_what_postgres_does_not_take_is_503_as_a_whole(
    api: httpx.AsyncClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "ACCEPT_TIMEOUT_S", 0.3)
    connection = await asyncpg.connect(settings.database_url)
    async with connection.transaction():
        await connection.execute("lock table events in access exclusive mode")
        response = await post(api, [GOOD, b"null", GOOD])
    await connection.close()
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
