"""One call to a model: who is asked, what comes back, and what is done where nothing does."""

import json
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from prompts import Prompts
from service.core.errors import CallboardError, Outage
from tests.workers.models.asking import MODELS, PAIR, PROVIDERS, Ledger, Sorted, always, ask, opened, provider, said
from workers.models.client import Call, LlmRefused


@pytest.mark.parametrize("name", PROVIDERS)
async def test_a_reply_by_type(prompts: Prompts, simulator: str, ledger: Ledger, name: str) -> None:
    async with opened(prompts, simulator) as llm:
        reply = await ask(llm, ledger, returns=Sorted, model=name)
        again = await ask(llm, ledger, returns=Sorted, model=name)
    assert isinstance(reply, Sorted)
    assert reply == again, "the simulator is deterministic"
    (call, same) = ledger.calls
    assert call.call_id != same.call_id
    assert call.request_hash == same.request_hash


@pytest.mark.parametrize("name", PROVIDERS)
async def test_system_and_bounds_reach_the_provider(prompts: Prompts, ledger: Ledger, name: str) -> None:
    asked: list[dict[str, Any]] = []

    async def handle(request: Request) -> Response:
        asked.append(await request.json())
        return Response(said("hello"), media_type="application/json")

    async with provider(handle) as url, opened(prompts, url) as llm:
        assert await ask(llm, ledger, model=name) == "hello"
    text = json.dumps(asked[0])
    assert "Be brief." in text
    assert "Sort this: I paid twice" in text
    assert asked[0]["model"] == MODELS[name]
    bound = "max_completion_tokens" if name in ("openai", "azure") else "max_tokens"
    assert {word: bound for word, bound in asked[0].items() if word.startswith("max_")} == {bound: 100}
    assert (ledger.calls[0].tokens_in, ledger.calls[0].tokens_out) == (7, 3)


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize(
    ("body", "status", "headers", "outcome"),
    [
        ("<html>maintenance</html>", 200, {"content-type": "text/html"}, "malformed"),
        ("{}", 200, {}, "malformed"),
        (said("half")[:40], 200, {}, "malformed"),
        ("null", 200, {}, "malformed"),
        ('{"more": ' + "[" * 20_000, 200, {}, "malformed"),
        (said("x", None, None), 200, {}, "malformed"),
        (said(None), 200, {}, "malformed"),
        ("{}", 500, {}, "server"),
        ("{}", 529, {}, "server"),
        ("<html>", 502, {"content-type": "text/html"}, "server"),
        ("{}", 429, {"retry-after": "7"}, "rate_limited"),
        ("{}", 401, {}, "setup"),
        ("{}", 403, {}, "setup"),
        ("{}", 404, {}, "setup"),
        ('{"error": {"code": "insufficient_quota", "type": "billing_error", "message": "x"}}', 429, {}, "setup"),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_a_provider_that_can_not_answer_is_an_outage(
    prompts: Prompts, ledger: Ledger, name: str, body: str, status: int, headers: dict[str, str], outcome: str
) -> None:
    async with provider(always(body, status, headers)) as url, opened(prompts, url) as llm:
        with pytest.raises(Outage) as caught:
            await ask(llm, ledger, model=name)
    assert ledger.outcomes == [outcome]
    (call,) = ledger.calls
    sure = 400 <= status < 500
    assert call.outcome == (outcome if sure else "unknown")
    assert call.cost_usd == (0 if sure else ledger.opened[0].cost_usd), "free only where that is sure"
    assert 0 < caught.value.after_s <= 60
    assert name in caught.value.cause
    if "retry-after" in headers:
        assert 7 <= caught.value.after_s <= 8


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize(
    ("body", "status", "outcome", "says"),
    [
        (
            '{"error": {"message": "too many images", "type": "invalid_request_error"}}',
            400,
            "refused",
            "too many images",
        ),
        ("{}", 413, "refused", "413"),
        (said("I", "content_filter", "refusal"), 200, "refused", "refused"),
        (said("cut", "length", "max_tokens"), 200, "length", "max_tokens"),
    ],
)
async def test_what_is_for_the_event_to_fail(
    prompts: Prompts, ledger: Ledger, name: str, body: str, status: int, outcome: str, says: str
) -> None:
    async with provider(always(body, status)) as url, opened(prompts, url) as llm:
        with pytest.raises(LlmRefused, match=says):
            await ask(llm, ledger, model=name)
    assert ledger.outcomes == [outcome]


@pytest.mark.parametrize("name", PROVIDERS)
async def test_an_invalid_reply_is_asked_again_once_with_the_error(prompts: Prompts, ledger: Ledger, name: str) -> None:
    asked: list[dict[str, Any]] = []

    async def handle(request: Request) -> Response:
        asked.append(await request.json())
        mended = '{"intent": "x", "urgency": "high"}' if len(asked) == 2 else '{"intent": "x", "urgency": "extreme"}'
        return Response(said(mended), media_type="application/json")

    async with provider(handle) as url, opened(prompts, url) as llm:
        assert await ask(llm, ledger, returns=Sorted, model=name) == Sorted("x", "high")
        with pytest.raises(LlmRefused, match="asked twice"):
            await ask(llm, ledger, returns=Sorted, model=name)
    assert ledger.outcomes == ["invalid", "ok", "invalid", "invalid"]
    assert "Invalid enum value 'extreme'" in asked[1]["messages"][-1]["content"]
    assert ledger.calls[0].request_hash == ledger.calls[2].request_hash != ledger.calls[1].request_hash
    assert all(call.tokens_out for call in ledger.calls), "an invalid reply is paid for all the same"


async def test_an_empty_reply_is_not_shown_to_the_model_again(prompts: Prompts, ledger: Ledger) -> None:
    asked: list[dict[str, Any]] = []

    async def handle(request: Request) -> Response:
        asked.append(await request.json())
        return Response(said('{"intent": "x", "urgency": "high"}' if len(asked) == 2 else ""))

    async with provider(handle) as url, opened(prompts, url) as llm:
        assert await ask(llm, ledger, returns=Sorted, model="anthropic") == Sorted("x", "high")
    assert [message["role"] for message in asked[1]["messages"]] == ["user", "user"]


async def test_the_next_in_the_chain_answers(prompts: Prompts, ledger: Ledger) -> None:
    async def handle(request: Request) -> Response:
        if (await request.json())["model"] == MODELS["openai"]:
            return Response("{}", 503)
        return Response(said("hello"), media_type="application/json")

    async with provider(handle) as url, opened(prompts, url) as llm:
        assert await ask(llm, ledger) == "hello"
    assert [call.provider for call in ledger.calls] == ["openai", "anthropic"]
    assert ledger.outcomes == ["server", "ok"]


async def test_a_spent_chain_names_every_cause_and_the_shortest_wait(prompts: Prompts, ledger: Ledger) -> None:
    async def handle(request: Request) -> Response:
        wait_s = "40" if (await request.json())["model"] == MODELS["openai"] else "9"
        return Response("{}", 429, {"retry-after": wait_s})

    async with provider(handle) as url, opened(prompts, url) as llm:
        with pytest.raises(Outage) as caught:
            await ask(llm, ledger)
    assert 9 <= caught.value.after_s <= 10
    assert all(name in caught.value.cause for name in PAIR)


@pytest.mark.parametrize(
    ("prompt", "variables", "model"),
    [
        ("sort", {}, None),
        ("nothing", {"text": "x"}, None),
        ("sort", {"text": "x"}, "huge"),
        ("sort@9", {"text": "x"}, None),
    ],
)
async def test_what_does_not_fit_is_no_outage(
    prompts: Prompts, simulator: str, ledger: Ledger, prompt: str, variables: dict[str, str], model: str | None
) -> None:
    async with opened(prompts, simulator) as llm:
        with pytest.raises(CallboardError) as caught:
            await llm.ask(prompt, variables, returns=str, call_log=ledger, model=model)
    assert not isinstance(caught.value, Outage)
    assert not ledger.calls


async def test_a_ledger_that_can_not_be_written_stops_the_call(prompts: Prompts, simulator: str) -> None:
    class Refusing(Ledger):
        async def open(self, call: Call) -> None:
            raise Outage("no ledger")

    refusing = Refusing()
    async with opened(prompts, simulator) as llm:
        with pytest.raises(Outage, match="no ledger"):
            await llm.ask("sort", {"text": "x"}, returns=str, call_log=refusing, model="openai")
    assert not refusing.calls
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(f"{simulator}/calls")).json()["calls"] == []


async def test_a_429_is_the_next_ones_in_the_chain_and_nobody_asks_again_meanwhile(
    prompts: Prompts, ledger: Ledger
) -> None:
    async def handle(request: Request) -> Response:
        if (await request.json())["model"] == MODELS["openai"]:
            return Response("{}", 429, {"retry-after": "30"})
        return Response(said("hello"), media_type="application/json")

    async with provider(handle) as url, opened(prompts, url) as llm:
        assert [await ask(llm, ledger) for _ in range(3)] == ["hello"] * 3
    assert [call.provider for call in ledger.calls] == ["openai"] + ["anthropic"] * 3
