"""Rate limits, as the real SDKs and their headers report them."""

import asyncio
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime

import anthropic
import httpx
import openai
import pytest

from service.core.errors import SettingsError
from tests.eventually import eventually
from tests.workers.simulator.sdks import HELLO, MODEL, asking
from workers.simulator import running_simulator
from workers.simulator.behaviour import Behaviour
from workers.simulator.limits import Bucket, Limit, parse

PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}


def simulating(limit: Limit) -> AbstractAsyncContextManager[str]:
    return running_simulator(behaviour=Behaviour(latency_ms=0, limits=(limit,)))


async def test_requests_per_minute_and_what_the_headers_tell() -> None:
    limit = Limit(requests=2, tokens=1000, model=MODEL)
    async with simulating(limit) as url, httpx.AsyncClient(base_url=url, trust_env=False) as http:
        request = {"model": MODEL, "messages": HELLO}
        first = await http.post(PATHS["openai"], json=request)
        second = await http.post(PATHS["anthropic"], json=request)
        third = await http.post(PATHS["openai"], json=request)
        other = await http.post(PATHS["openai"], json={**request, "model": "another"})
    assert [answer.status_code for answer in (first, second, third, other)] == [200, 200, 429, 200]
    told = first.headers
    assert (told["x-ratelimit-limit-requests"], told["x-ratelimit-remaining-requests"]) == ("2", "1")
    assert told["x-ratelimit-limit-tokens"] == "1000"
    assert 0 < int(told["x-ratelimit-remaining-tokens"]) < 1000
    assert 0 < float(told["x-ratelimit-reset-requests"].rstrip("s")) <= 30
    told = second.headers
    assert (told["anthropic-ratelimit-requests-limit"], told["anthropic-ratelimit-requests-remaining"]) == ("2", "0")
    assert datetime.fromisoformat(told["anthropic-ratelimit-tokens-reset"]) > datetime(2020, 1, 1, tzinfo=UTC)
    assert 1 <= int(third.headers["retry-after"]) <= 30
    assert third.json()["error"]["code"] == "rate_limit_exceeded"
    assert not [name for name in other.headers if "ratelimit" in name]


async def test_tokens_per_minute() -> None:
    async with simulating(Limit(tokens=150)) as url, asking("anthropic", url) as ask:
        heard = await ask()
        assert heard.tokens
        assert sum(heard.tokens) * 2 < 150 < sum(heard.tokens) * 2.9
        await ask()
        with pytest.raises(anthropic.RateLimitError, match="tokens per minute") as caught:
            await ask()
        assert await ask(model="another"), "each model has the limit for itself"
    assert caught.value.type == "rate_limit_error"


async def test_concurrent_requests() -> None:
    async with (
        simulating(Limit(concurrent=2)) as url,
        asking("openai", url) as ask,
        httpx.AsyncClient(base_url=url, trust_env=False) as http,
    ):
        waiting = [asyncio.ensure_future(ask(fault="hang")) for _ in range(2)]

        async def are(ended: str) -> bool:
            calls = (await http.get("/calls")).json()["calls"]
            return [call["ended"] for call in calls][:2] == [ended] * 2

        await eventually(lambda: are("open"))
        with pytest.raises(openai.RateLimitError, match="concurrent"):
            await ask()
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await eventually(lambda: are("left"))
        assert (await ask()).stop == "stop"


def test_a_bucket_fills_steadily() -> None:
    bucket = Bucket(6000)
    assert bucket.after_s(6000) == 0
    bucket.take(6000)
    assert 0 < bucket.after_s(100) <= 1
    assert 0.9 < bucket.after_s(200) <= 2
    assert bucket.after_s(1_000_000) <= 60, "more than there ever is comes through when all is there"


def test_a_limit_in_words() -> None:
    assert parse("requests=60,tokens=10000,concurrent=5,model=m") == Limit(
        requests=60, tokens=10000, concurrent=5, model="m"
    )


@pytest.mark.parametrize("text", ["", "60", "requests=0", "calls=5", "requests=many"])
def test_what_is_no_limit_is_told(text: str) -> None:
    with pytest.raises(SettingsError, match="is no limit"):
        parse(text)
