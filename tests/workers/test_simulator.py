"""The simulator, seen through the real SDKs and through plain HTTP."""

import math
from collections.abc import AsyncIterator
from typing import Annotated, Literal

import httpx
import msgspec
import pytest
from anthropic import AsyncAnthropic
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct
from openai import AsyncOpenAI

from service.errors import StartError
from workers.clients.structured import schema_of
from workers.simulator import running_simulator
from workers.simulator.replies import embedding, reply, seed


class Part(Struct, frozen=True):
    weight: Annotated[float, Meta(ge=0.25, lt=0.5)]
    note: str | None = None


class Card(Struct, frozen=True, tag="card"):
    last4: Annotated[str, Meta(min_length=4, max_length=4)]


class Cash(Struct, frozen=True, tag="cash"):
    coins: bool


class Everything(Struct, frozen=True):
    mood: Literal["good", "bad"]
    count: Annotated[int, Meta(ge=3, le=5)]
    language: Annotated[str, Meta(pattern="^[a-z]{2}$", examples=["en", "de"])]
    parts: Annotated[list[Part], Meta(min_length=3, max_length=3)]
    paid: Card | Cash
    sure: bool


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with running_simulator(latency_s=0.0) as address:
        yield address


@given(st.text())
def test_replies_fit_the_strict_schema_and_the_type_behind_it(question: str) -> None:
    schema = schema_of(Everything).body
    said = reply(schema, seed(question))
    assert said == reply(schema, seed(question))
    msgspec.json.decode(said, type=Everything)


def test_other_questions_get_other_replies() -> None:
    schema = schema_of(Everything).body
    assert len({reply(schema, seed(number)) for number in range(50)}) > 10


def test_embeddings_of_like_texts_are_near() -> None:
    def likeness(one: str, other: str) -> float:
        return sum(a * b for a, b in zip(embedding(one, 256), embedding(other, 256), strict=True))

    assert math.isclose(likeness("lost my card", "lost my card"), 1)
    assert math.isclose(likeness("", ""), 1)
    assert likeness("I lost my card", "my card is lost") > likeness("I lost my card", "where do you ship to?")


async def test_openai_sdk_reads_it(url: str) -> None:
    async with AsyncOpenAI(api_key="x", base_url=f"{url}/v1", max_retries=0) as sdk:
        said = await sdk.chat.completions.create(model="gpt-6-luna", messages=[{"role": "user", "content": "Hello"}])
        vectors = await sdk.embeddings.create(model="text-embedding-3-small", input=["a", "b"], dimensions=8)
        plain = await sdk.embeddings.create(model="m", input="a", dimensions=8, encoding_format="float")
    assert said.choices[0].finish_reason == "stop"
    assert "simulat" in (said.choices[0].message.content or "")
    assert said.usage
    assert said.usage.completion_tokens > 0
    assert [len(each.embedding) for each in vectors.data] == [8, 8]
    assert vectors.data[0].embedding == pytest.approx(plain.data[0].embedding)


async def test_anthropic_sdk_reads_it(url: str) -> None:
    async with AsyncAnthropic(api_key="x", base_url=url, max_retries=0) as sdk:
        said = await sdk.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "Hello"}])
    assert said.stop_reason == "end_turn"
    assert said.content[0].type == "text"
    assert said.usage.output_tokens > 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/embeddings"])
@pytest.mark.parametrize("body", [b"", b"{", b"{}", b'{"model": "m", "messages": "no"}', b"\xff"])
async def test_bad_requests_are_refused_as_the_provider_would(url: str, path: str, body: bytes) -> None:
    async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
        answer = await http.post(path, content=body)
    assert answer.status_code == 400
    assert answer.headers["x-callboard-simulated"] == "1"
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_the_pager_shows_what_came(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
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
