"""Vectors by a model: in order, in batches, in the ledger, and not paid for twice."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from prompts import Prompts, Target
from service.core.errors import CallboardError, Outage, WiringError
from tests.workers.models.asking import EAGER, PROVIDERS, Ledger, always, opened, provider
from workers.models.client import LlmRefused
from workers.models.embeddings import AT_ONCE, BATCH_BYTES_MAX, BATCH_TEXTS_MAX, pack, unpack

MODEL = "text-embedding-3-small"


def embedding(prompts: Prompts, *providers: str, model: str = MODEL) -> Prompts:
    """With these providers behind the alias `embed`."""
    return Prompts(prompts.versions, {**prompts.models, "embed": tuple(Target(each, model) for each in providers)})


def answer(*vectors: list[float], first: int = 0) -> str:
    rows = [{"index": index, "embedding": vector} for index, vector in enumerate(vectors, first)]
    return json.dumps({"data": rows[::-1], "usage": {"prompt_tokens": 9, "total_tokens": 9}})


@pytest.mark.parametrize("name", [each for each in PROVIDERS if each != "anthropic"])
async def test_a_vector_for_each_text(prompts: Prompts, simulator: str, ledger: Ledger, name: str) -> None:
    async with opened(embedding(prompts, name), simulator) as llm:
        one, two = await llm.embed(["I paid twice", "My password"], call_log=lambda: ledger, labels={"event_id": "e-1"})
        (same,) = await llm.embed(["I paid twice"], call_log=lambda: ledger)
        assert await llm.embed([], call_log=lambda: ledger) == []
    assert len(one) == len(two) == 1536
    assert one == same != two
    call = ledger.calls[0]
    assert (call.prompt, call.provider, call.model, call.outcome, call.simulated) == (
        "(embed)",
        name,
        MODEL,
        "ok",
        True,
    )
    assert call.tokens_in > 0 == call.tokens_out
    if name in ("openai", "azure"):
        assert ledger.opened[0].cost_usd > call.cost_usd > 0, "reserved, then settled by what was used"
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(f"{simulator}/calls")).json()["calls"][0]["event_id"] == "e-1"


async def test_order_and_bounds_of_many(prompts: Prompts, ledger: Ledger) -> None:
    sizes: list[tuple[int, int]] = []
    at_once = most = 0

    async def handle(request: Request) -> Response:
        nonlocal at_once, most
        texts = (await request.json())["input"]
        sizes.append((len(texts), sum(map(len, texts))))
        at_once, most = at_once + 1, max(most, at_once + 1)
        await asyncio.sleep(0.02)
        at_once -= 1
        return Response(answer(*[[float(text.split()[0]), 0.5] for text in texts]), media_type="application/json")

    texts = [f"{index} {'x' * (2_000 if index > 600 else 1)}" for index in range(700)]
    async with provider(handle) as url, opened(embedding(prompts, "openai"), url) as llm:
        vectors = await llm.embed(texts, call_log=lambda: ledger)
    assert vectors == [[float(index), 0.5] for index in range(700)]
    assert most == AT_ONCE
    assert max(count for count, _ in sizes) == BATCH_TEXTS_MAX
    assert max(size for _, size in sizes) <= BATCH_BYTES_MAX
    assert len(ledger.calls) == len(sizes) < 20


async def test_what_is_kept_gives_the_same_numbers_without_a_call(prompts: Prompts) -> None:
    class Remembers(Ledger):
        def recall(self, asked: str) -> tuple[int, str | None]:
            return 1, self.calls[0].reply if self.calls else None

        def recalled(self, prompt: Any) -> None:
            assert prompt.name == "(embed)"

    call_log = Remembers()
    told = provider(always(answer([0.1, 0.2], [1 / 3, -1e-9])))
    async with told as url, opened(embedding(prompts, "openai"), url) as llm:
        first = await llm.embed(["a", "b"], call_log=lambda: call_log)
        assert await llm.embed(["a", "b"], call_log=lambda: call_log) == first
    assert len(call_log.calls) == 1
    assert [*first[0], *first[1]] == pytest.approx([0.1, 0.2, 1 / 3, -1e-9])
    assert unpack(pack(first)) == first


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        "<html>",
        answer([1.0, 2.0])[:30],
        answer([1.0]),
        answer([1.0], [1.0], [1.0]),
        answer([1.0, 2.0], [1.0]),
        answer([], []),
        answer([1.0], [1.0], first=1),
        '{"data": [{"index": 0, "embedding": [[1.0]]}]}',
    ],
)
async def test_a_reply_that_is_none_is_an_outage(prompts: Prompts, ledger: Ledger, body: str) -> None:
    async with provider(always(body)) as url, opened(embedding(prompts, "openai"), url) as llm:
        with pytest.raises(Outage):
            await llm.embed(["a", "b"], call_log=lambda: ledger)
    assert ledger.outcomes == ["malformed"]
    assert ledger.calls[0].outcome == "unknown"


async def test_a_text_that_is_too_long_or_none_is_the_events_own_failure(prompts: Prompts, ledger: Ledger) -> None:
    too_long = '{"error": {"message": "maximum context length is 8192 tokens", "type": "invalid_request_error"}}'
    async with provider(always(too_long, 400)) as url, opened(embedding(prompts, "openai"), url) as llm:
        with pytest.raises(LlmRefused, match=r"An embedding at openai .*maximum context length"):
            await llm.embed(["x" * 100_000], call_log=lambda: ledger)
        with pytest.raises(CallboardError, match=r"texts\[1\] is empty"):
            await llm.embed(["a", ""], call_log=lambda: ledger)
    assert ledger.outcomes == ["refused"]


async def test_the_first_failure_begins_no_more_calls_and_opens_the_breaker(prompts: Prompts, ledger: Ledger) -> None:
    async with provider(always("{}", 500)) as url, opened(embedding(prompts, "openai"), url, EAGER) as llm:
        with pytest.raises(Outage):
            await llm.embed(["x"] * BATCH_TEXTS_MAX * 100, call_log=lambda: ledger)
        assert 0 < len(ledger.calls) < 20
        for _ in range(5):
            with pytest.raises(Outage):
                await llm.embed(["x"], call_log=lambda: ledger)
        assert llm.breakers()[f"openai/{MODEL}"] == "open"


async def test_the_next_provider_has_the_same_model(prompts: Prompts, ledger: Ledger) -> None:
    async def handle(request: Request) -> Response:
        if request.url.path.startswith("/v1/"):
            return Response("{}", 503)
        return Response(answer([1.0]), media_type="application/json")

    async with provider(handle) as url, opened(embedding(prompts, "openai", "azure"), url) as llm:
        assert await llm.embed(["a"], call_log=lambda: ledger) == [[1.0]]
    assert [call.provider for call in ledger.calls] == ["openai", "azure"]


@pytest.mark.parametrize(
    ("chain", "says"),
    [
        ((Target("anthropic", "m"),), "anthropic, which has no embeddings"),
        ((Target("openai", "one"), Target("mistral", "two")), "one and two, whose vectors can't be compared"),
    ],
)
async def test_an_alias_that_makes_no_vectors_stops_the_boot(
    prompts: Prompts, simulator: str, chain: tuple[Target, ...], says: str
) -> None:
    with pytest.raises(WiringError, match=says):
        async with opened(Prompts(prompts.versions, {**prompts.models, "embed": chain}), simulator):
            pass


async def test_an_alias_that_is_none_or_makes_none_is_said(prompts: Prompts, simulator: str, ledger: Ledger) -> None:
    async with opened(prompts, simulator) as llm:
        with pytest.raises(WiringError, match="no embeddings"):
            await llm.embed(["a"], call_log=lambda: ledger, model="anthropic")
        with pytest.raises(CallboardError, match='No model alias "huge"'):
            await llm.embed(["a"], call_log=lambda: ledger, model="huge")
