"""Quotas over HTTP: two APIs and one Redis, and what is left of them without it."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic

import asyncpg
import httpx
import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from service.access import quotas
from service.core.settings import Settings
from tests.board import serving
from tests.eventually import eventually
from tests.keys import bearer, make_key
from tests.redis_servers import redis_server
from tests.servers import NAMES

EVENT = {"type": "message.labelled", "data": {"text": "a", "label": "b"}}


@pytest.fixture
def patiently(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other tests is no Redis that is away."""
    monkeypatch.setattr(quotas, "DEADLINE_S", 10.0)


@asynccontextmanager
async def two_apis(settings: Settings, key: str) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Both are known to be there."""
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(serving(settings)) for _ in range(2)]
        clients = [httpx.AsyncClient(base_url=url, timeout=30, headers=bearer(key)) for url in urls]
        for client in clients:
            await stack.enter_async_context(client)
        async with Redis.from_url(settings.redis_url) as redis:
            await eventually(lambda: _are_two(redis))
        yield clients


async def _are_two(redis: Redis) -> bool:
    return int(await redis.zcard(NAMES.apis)) == 2


async def _have_told_again(redis: Redis, before: Mapping[bytes, float]) -> bool:
    """Both have, since there were two, and so know of each other."""
    now = dict(await redis.zrange(NAMES.apis, 0, -1, withscores=True))
    return all(now[name] > at for name, at in before.items())


@pytest.mark.usefixtures("patiently")
async def test_a_rate_holds_over_two_apis(settings: Settings) -> None:
    key = await make_key(settings, "ingest", "read", rate="20/h")
    other = bearer(await make_key(settings, "ingest"))
    async with two_apis(settings, key) as apis, Redis.from_url(settings.redis_url) as redis:
        answers = await asyncio.gather(*(apis[n % 2].post("/events", json=EVENT) for n in range(50)))
        assert Counter(answer.status_code for answer in answers) == {202: 20, 429: 30}
        refused = next(answer for answer in answers if answer.status_code == 429)
        after_s = int(refused.headers["retry-after"])
        assert 170 <= after_s <= 181  # the next of 20 in an hour
        assert refused.headers["content-type"] == "application/problem+json"
        detail = f"the key {key[:11]} may send 20 events an hour over all APIs (its --rate): the next one fits in"
        assert refused.json()["detail"] == f"{detail} {after_s} s"
        assert {(await api.post("/events", json=EVENT, headers=other)).status_code for api in apis} == {202}
        assert len((await apis[0].get("/events?limit=100")).json()["items"]) == 22
        shown = [(await api.get("/metrics")).text for api in apis]
        assert sum(text.count('callboard_over_limit_total{limit="rate"}') for text in shown) == 2
        kept = [name async for name in redis.scan_iter(f"{NAMES.quota}:*")]
        assert [name.decode().rpartition(":")[2] for name in kept] == [key[:11]]
        assert 0 < await redis.pttl(kept[0]) <= 3_600_000
        assert 0 < await redis.pttl(NAMES.apis) <= 15_000


@pytest.mark.usefixtures("patiently")
async def test_a_batch_is_taken_as_far_as_it_fits(settings: Settings) -> None:
    """In order: what did not fit says so in its place, and where nothing fitted the answer is the refusal itself."""
    key = bearer(await make_key(settings, "ingest", rate="10/h"))
    async with serving(settings) as url, httpx.AsyncClient(base_url=url, timeout=30, headers=key) as http:
        first = await http.post("/events/batch", json=[{"type": "unheard-of"}, *[EVENT] * 11])
        assert (first.status_code, first.json()["accepted"], first.json()["rejected"]) == (207, 9, 3)
        items = first.json()["items"]
        assert [item.get("error", {}).get("status", 202) for item in items] == [422, *[202] * 9, 429, 429]
        assert "the next 2 fit in" in items[-1]["error"]["detail"]
        assert 700 <= int(first.headers["retry-after"]) <= 721
        second = await http.post("/events/batch", json=[EVENT] * 3)
        assert (second.status_code, second.json()["status"]) == (429, 429)
        assert 1060 <= int(second.headers["retry-after"]) <= 1081


@pytest.mark.usefixtures("patiently")
async def test_a_changed_rate_holds_at_once(settings: Settings) -> None:
    key = await make_key(settings, "ingest", rate="1/h")
    sql = await asyncpg.connect(settings.database_url)
    async with serving(settings) as url, httpx.AsyncClient(base_url=url, timeout=30, headers=bearer(key)) as http:
        assert [(await http.post("/events", json=EVENT)).status_code for _ in range(2)] == [202, 429]
        await sql.execute("update keys set rate = '100/s'")

        async def let_in() -> bool:
            return (await http.post("/events", json=EVENT)).status_code == 202

        await eventually(let_in, 5)
    await sql.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["gone", "says nothing"])
async def test_without_redis_each_api_keeps_to_its_part(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    """Of two, half; and no event waits for a Redis that is not there."""
    key = await make_key(settings, "ingest", rate="20/h")
    monkeypatch.setattr(quotas, "BEAT_S", 0.1)
    async with redis_server(tmp_path / "redis") as redis:
        own = replace(settings, redis_url=redis.url())
        async with two_apis(own, key) as apis:
            async with Redis.from_url(redis.url()) as client:
                before = dict(await client.zrange(NAMES.apis, 0, -1, withscores=True))
                await eventually(lambda: _have_told_again(client, before))
            redis.process.send_signal(how)
            took_s = list[float]()

            async def post(api: httpx.AsyncClient) -> int:
                begun = monotonic()
                status = (await api.post("/events", json=EVENT)).status_code
                took_s.append(monotonic() - begun)
                return status

            for api in apis:
                answers = [await post(api) for _ in range(15)]
                assert answers == [202] * 10 + [429] * 5
            assert max(took_s) < 1.0
            assert sorted(took_s)[len(took_s) // 2] < quotas.DEADLINE_S
            redis.process.send_signal(signal.SIGCONT)


async def test_so_many_may_be_open(settings: Settings) -> None:
    """What this key sent and what has not ended, counted anew each second; another key of its tenant has its own."""
    key = await make_key(settings, "ingest", max_open=5)
    other = bearer(await make_key(settings, "ingest"))
    sql = await asyncpg.connect(settings.database_url)
    async with two_apis(settings, key) as (first, second):
        batch = await first.post("/events/batch", json=[EVENT] * 8)
        assert (batch.status_code, batch.json()["accepted"], batch.headers["retry-after"]) == (207, 5, "1")
        for api in (first, second):
            refused = await api.post("/events", json=EVENT)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert f"the key {key[:11]} may have 5 events open (its --max-open)" in refused.json()["detail"]
            assert (await api.post("/events", json=EVENT, headers=other)).status_code == 202
        ended = await sql.fetch("delete from work where quota_key = $1 returning 1", key[:11])
        assert len(ended) == 5

        async def let_in() -> bool:
            return (await second.post("/events", json=EVENT)).status_code == 202

        await eventually(let_in, 5)
        assert await sql.fetchval("select count(*) from work where quota_key is not null") == 1
    await sql.close()
