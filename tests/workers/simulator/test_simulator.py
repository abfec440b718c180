"""The simulator, seen through the real SDKs and through plain HTTP."""

import json
import math
from typing import Any, Literal

import httpx
import pytest
from msgspec import Struct
from openai import AsyncAzureOpenAI, AsyncOpenAI

from service.core.errors import StartError
from tests.eventually import eventually
from tests.workers.simulator.sdks import HELLO, MODEL, asking
from workers.models.structured import Shape
from workers.simulator import running_simulator
from workers.simulator.behaviour import Behaviour
from workers.simulator.replies import embedding

NAMES = ("openai", "anthropic")
STOPS = {
    "openai": {"end": "stop", "length": "length"},
    "anthropic": {"end": "end_turn", "length": "max_tokens"},
}


class Verdict(Struct, frozen=True):
    mood: Literal["calm", "cross", "glad"]
    because: str


def structured(name: str) -> dict[str, Any]:
    """As our clients ask for a Struct."""
    schema = Shape(Verdict).schema
    assert schema
    if name == "openai":
        asked = {"name": schema.name, "strict": True, "schema": schema.body}
        return {"response_format": {"type": "json_schema", "json_schema": asked}}
    return {"output_config": {"format": {"type": "json_schema", "schema": schema.body}}}


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("name", NAMES)
async def test_both_sdks_read_it(url: str, name: str, streams: bool) -> None:
    async with asking(name, url) as ask:
        heard = await ask(streams=streams)
    assert heard.stop == STOPS[name]["end"]
    assert "simulat" in (heard.text or "")
    assert heard.tokens
    assert min(heard.tokens) > 0
    assert (heard.pieces > 10) is streams


@pytest.mark.parametrize("name", NAMES)
async def test_a_stream_says_what_the_plain_reply_says(url: str, name: str) -> None:
    async with asking(name, url) as ask:
        plain, stream = await ask(**structured(name)), await ask(streams=True, **structured(name))
    assert isinstance(Shape(Verdict).decode(plain.text or ""), Verdict)
    assert (stream.text, stream.stop, stream.tokens) == (plain.text, plain.stop, plain.tokens)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("name", NAMES)
async def test_no_reply_is_longer_than_max_tokens(url: str, name: str, streams: bool) -> None:
    async with asking(name, url) as ask:
        prose = await ask(streams=streams, max_tokens=9)
        cut = await ask(streams=streams, max_tokens=3, **structured(name))
    assert prose.stop == STOPS[name]["end"]
    assert cut.stop == STOPS[name]["length"]
    assert prose.tokens
    assert cut.tokens
    assert (prose.tokens[1], cut.tokens[1]) == (9, 3)


async def test_the_usage_of_a_stream_is_told_when_it_is_asked_for(url: str) -> None:
    async with AsyncOpenAI(api_key="x", base_url=f"{url}/v1", max_retries=0) as sdk:
        stream = await sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        chunks = [chunk async for chunk in stream]
    assert [chunk.usage for chunk in chunks] == [None] * len(chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_the_events_of_anthropic_come_in_order(http: httpx.AsyncClient) -> None:
    request = {"model": MODEL, "messages": HELLO, "max_tokens": 3, "stream": True}
    text = (await http.post("/v1/messages", json=request)).text
    events = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert [json.loads(line[6:])["type"] for line in text.splitlines() if line.startswith("data: ")] == events
    deltas = ["content_block_delta"] * 3
    begin, end = ["message_start", "content_block_start", "ping"], ["content_block_stop", "message_delta"]
    assert events == [*begin, *deltas, *end, "message_stop"]


async def test_the_seed_and_the_question_make_the_reply(url: str) -> None:
    asked = [{**structured("openai"), "messages": [{"role": "user", "content": str(n)}]} for n in range(30)]

    async def texts(address: str) -> list[str | None]:
        async with asking("openai", address) as ask:
            return [(await ask(**each)).text for each in asked]

    said = await texts(url)
    assert said == await texts(url)
    assert len(set(said)) == 3, "each mood"
    async with running_simulator(behaviour=Behaviour(seed=1, latency_ms=0)) as other:
        assert said != await texts(other)


async def test_azure_is_asked_by_deployment(url: str, http: httpx.AsyncClient) -> None:
    async with AsyncAzureOpenAI(api_key="x", azure_endpoint=url, api_version="2026-01-01", max_retries=0) as sdk:
        completion = await sdk.chat.completions.create(model="our-deployment", messages=HELLO)
        stream = await sdk.chat.completions.create(model="our-deployment", messages=HELLO, stream=True)
        text = "".join([choice.delta.content or "" async for chunk in stream for choice in chunk.choices])
        vectors = await sdk.embeddings.create(model="our-vectors", input="a", dimensions=8)
    assert completion.choices[0].message.content == text
    assert len(vectors.data[0].embedding) == 8
    calls = (await http.get("/calls")).json()["calls"]
    assert [call["model"] for call in calls] == ["our-deployment", "our-deployment", "our-vectors"]
    assert calls[0]["path"] == "/openai/deployments/our-deployment/chat/completions"


async def test_embeddings(url: str) -> None:
    async with AsyncOpenAI(api_key="x", base_url=f"{url}/v1", max_retries=0) as sdk:
        vectors = await sdk.embeddings.create(model="text-embedding-3-small", input=["a", "b"], dimensions=8)
        plain = await sdk.embeddings.create(model="m", input="a", dimensions=8, encoding_format="float")
        large = await sdk.embeddings.create(model="text-embedding-3-large", input="a")
    assert [len(vector.embedding) for vector in vectors.data] == [8, 8]
    assert vectors.data[0].embedding == pytest.approx(plain.data[0].embedding)
    assert len(large.data[0].embedding) == 3072


def test_embeddings_of_like_texts_are_near() -> None:
    def likeness(one: str, other: str) -> float:
        return sum(a * b for a, b in zip(embedding(one, 256), embedding(other, 256), strict=True))

    assert math.isclose(likeness("lost my card", "lost my card"), 1)
    assert math.isclose(likeness("", ""), 1)
    assert likeness("I lost my card", "my card is lost") > likeness("I lost my card", "where do you ship to?")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/embeddings"])
@pytest.mark.parametrize(
    "body", [b"", b"{", b"{}", b'{"model": "m", "messages": "no"}', b"\xff", b'{"messages": [], "input": ""}']
)
async def test_bad_requests_are_refused_as_the_provider_would(http: httpx.AsyncClient, path: str, body: bytes) -> None:
    answer = await http.post(path, content=body)
    assert answer.status_code == 400
    assert answer.headers["x-callboard-simulated"] == "1"
    assert answer.json()["error"]["type"] == "invalid_request_error"


STRANGE: list[dict[str, Any]] = [
    {"response_format": {"type": "json_schema", "json_schema": {"schema": {"anyOf": []}}}},
    {"output_config": {"format": {"schema": {"type": "string", "pattern": "("}}}},
    {"max_tokens": 0},
    {"response_format": 7},
]


@pytest.mark.parametrize("asked", STRANGE)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_what_can_not_be_met_is_refused(http: httpx.AsyncClient, path: str, asked: dict[str, Any]) -> None:
    assert (await http.post(path, json={"model": MODEL, "messages": HELLO, **asked})).status_code == 400


async def test_every_call_is_on_record(http: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "messages": HELLO}
    labels = {"x-callboard-event-id": "e-1", "x-callboard-step": "triage%23%C3%A4"}
    for more in ({}, labels):
        await http.post("/v1/chat/completions", json=body, headers=more)
    await http.post("/v1/chat/completions", json={**body, "stream": True}, headers={"x-callboard-fault": "503"})
    first, labelled, failed = (await http.get("/calls")).json()["calls"]
    assert [first["n"], labelled["n"], failed["n"]] == [1, 2, 3]
    assert (labelled["event_id"], labelled["step"]) == ("e-1", "triage#ä")
    assert first["request_hash"] == labelled["request_hash"] != failed["request_hash"]
    assert [(call["status"], call["fault"], call["ended"]) for call in (first, failed)] == [
        (200, "", "answered"),
        (503, "status", "answered"),
    ]
    assert first["at"] <= labelled["at"] <= failed["at"]


async def test_a_caller_who_leaves_is_on_record_as_gone(url: str, http: httpx.AsyncClient) -> None:
    request = {"model": MODEL, "messages": HELLO}
    with pytest.raises(httpx.ReadTimeout):
        await http.post("/v1/messages", json=request, headers={"x-callboard-fault": "hang"}, timeout=0.1)

    async def gone() -> bool:
        (call,) = (await http.get("/calls")).json()["calls"]
        return bool(call["ended"] == "left")

    assert await eventually(gone)


async def test_latency_is_as_it_was_asked_for() -> None:
    slow = Behaviour(latency_ms=100, latency_p99_ms=100, first_token_ms=50, token_ms=2)
    async with running_simulator(behaviour=slow) as address, asking("anthropic", address) as ask:
        plain, stream = await ask(max_tokens=25), await ask(max_tokens=25, streams=True)
        async with httpx.AsyncClient(base_url=address, trust_env=False) as http:
            first, second = [call["ms"] for call in (await http.get("/calls")).json()["calls"]]
    assert plain.text == stream.text
    assert first >= 100
    assert second >= 50 + 2 * 25


async def test_the_pager_shows_what_came(http: httpx.AsyncClient) -> None:
    answer = await http.post("/pages", json={"urgency": "high"}, headers={"idempotency-key": "e1/page"})
    assert (await http.post("/pages", content=b"{")).status_code == 400
    shown = (await http.get("/pages")).json()
    assert answer.status_code == 202
    assert shown == {"pages": [{"idempotency_key": "e1/page", "body": {"urgency": "high"}}]}


async def test_a_taken_port_is_one_sentence(url: str) -> None:
    with pytest.raises(StartError, match=r"can't listen on 127\.0\.0\.1:"):
        async with running_simulator(httpx.URL(url).port or 0):
            pass


async def test_it_is_gone_afterwards() -> None:
    async with running_simulator() as address:
        pass
    async with httpx.AsyncClient(trust_env=False) as http:
        with pytest.raises(httpx.ConnectError):
            await http.get(f"{address}/calls")
