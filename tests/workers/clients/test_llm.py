"""One call to a model: who is asked, what comes back, and what is done where nothing does."""

import asyncio
import importlib
import json
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

import workers.providers
from prompts import Prompts, Target
from service.errors import CallboardError, Outage, SettingsError, WiringError
from service.settings import Settings
from tests.workers.clients.asking import (
    EAGER,
    MODELS,
    PAIR,
    PROVIDERS,
    Ledger,
    Sorted,
    always,
    ask,
    opened,
    provider,
    said,
)
from workers.clients.llm import Call, LlmRefused, open_llm
from workers.providers import discover
from workers.simulator import running_simulator
from workers.simulator.behaviour import Behaviour
from workers.simulator.faults import Fault


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


@pytest.mark.parametrize("name", PROVIDERS)
async def test_the_deadline_is_total_and_counts_at_the_breaker(prompts: Prompts, ledger: Ledger, name: str) -> None:
    over = asyncio.Event()

    async def hang(_: Request) -> Response:
        await over.wait()
        return Response()

    async with provider(hang) as url, opened(prompts, url, EAGER) as llm:
        asking = [ask(llm, ledger, model=name, timeout_s=0.2) for _ in range(5)]
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        state = llm.breakers()[f"{name}/{MODELS[name]}"]
        over.set()
    assert all(isinstance(each, Outage) for each in outcomes)
    assert ledger.outcomes == ["timeout"] * 5
    assert [(call.outcome, call.cost_usd) for call in ledger.calls] == [
        ("unknown", call.cost_usd) for call in ledger.opened
    ]
    assert state == "open"


@pytest.mark.parametrize("name", PROVIDERS)
async def test_a_dead_provider_opens_the_breaker(prompts: Prompts, ledger: Ledger, name: str) -> None:
    async with provider(always()) as url:
        pass
    async with opened(prompts, url, EAGER) as llm:
        for _ in range(5):
            with pytest.raises(Outage, match="can't be reached"):
                await ask(llm, ledger, model=name)
        with pytest.raises(Outage, match="circuit breaker"):
            await ask(llm, ledger, model=name)
    assert ledger.outcomes == ["connection"] * 5, "a call that was not made is not in the ledger"
    assert {call.cost_usd for call in ledger.calls} == {0.0}, "what was not sent costs nothing"


async def test_half_open_probes_once_with_fifty_waiting(prompts: Prompts, ledger: Ledger) -> None:
    sick, calls, release = True, 0, asyncio.Event()

    async def handle(_: Request) -> Response:
        nonlocal calls
        calls += 1
        if sick:
            return Response("{}", 500)
        await release.wait()
        return Response(said("well"), media_type="application/json")

    async with provider(handle) as url, opened(prompts, url, EAGER) as llm:
        await asyncio.gather(*[ask(llm, ledger, model="openai") for _ in range(5)], return_exceptions=True)
        breaker = f"openai/{MODELS['openai']}"
        async with asyncio.timeout(5):
            while llm.breakers()[breaker] == "open":
                await asyncio.sleep(0.01)
        sick, calls = False, 0
        asking = [asyncio.create_task(ask(llm, ledger, model="openai")) for _ in range(50)]
        async with asyncio.timeout(5):
            for first in islice(asyncio.as_completed(asking), 49):
                with pytest.raises(Outage, match="circuit breaker"):
                    await first
            release.set()
            outcomes = await asyncio.gather(*asking, return_exceptions=True)
        assert (calls, outcomes.count("well")) == (1, 1)
        assert llm.breakers()[breaker] == "closed"


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
    ("name", "given", "path", "header"),
    [
        ("openai", {"openai_base_url": "{}/v1"}, "/v1/chat/completions", "authorization"),
        ("anthropic", {"anthropic_base_url": "{}"}, "/v1/messages", "authorization"),
        ("azure", {"azure_openai_endpoint": "{}/"}, "/openai/v1/chat/completions", "authorization"),
        (
            "azure",
            {"azure_openai_endpoint": "{}/", "openai_api_version": "2024-10-21"},
            "/openai/deployments/gpt-6-luna/chat/completions?api-version=2024-10-21",
            "api-key",
        ),
        ("local", {"local_base_url": "{}/v1"}, "/v1/chat/completions", "authorization"),
    ],
)
async def test_keys_choose_the_provider_and_are_sent(
    prompts: Prompts, ledger: Ledger, name: str, given: dict[str, str], path: str, header: str
) -> None:
    seen: list[Request] = []

    async def handle(request: Request) -> Response:
        seen.append(request)
        return Response(said("hello"), media_type="application/json")

    alone = Prompts(prompts.versions, {**prompts.models, "both": prompts.models[name]})
    key = {"azure": "azure_openai_api_key"}.get(name, f"{name}_api_key")
    async with provider(handle) as url:
        settings = replace(Settings(), **{key: "k-123"}, **{each: given[each].format(url) for each in given})
        assert settings.has_provider_key
        async with open_llm(settings, alone, None, discover(workers.providers)) as llm:
            assert await ask(llm, ledger, labels={"event_id": "e"}) == "hello"
    assert [(call.provider, call.simulated) for call in ledger.calls] == [(name, False)]
    assert str(seen[0].url) == url + path
    assert "k-123" in seen[0].headers[header]
    assert not [each for each in seen[0].headers if each.startswith("x-callboard")], "labels are the simulator's only"


async def test_a_server_of_ones_own_needs_no_key_and_may_want_its_own_json(prompts: Prompts, ledger: Ledger) -> None:
    asked: list[dict[str, Any]] = []

    async def handle(request: Request) -> Response:
        asked.append(await request.json())
        return Response(said('{"intent": "x", "urgency": "high"}'), media_type="application/json")

    alone = Prompts(prompts.versions, {"both": prompts.models["local"]})
    async with provider(handle) as url:
        settings = replace(Settings(), local_base_url=f"{url}/v1")
        for json_ in ("json_schema", "json_object"):
            told = replace(settings, local_json=json_)
            async with open_llm(told, alone, None, discover(workers.providers)) as llm:
                assert await ask(llm, ledger, returns=Sorted) == Sorted("x", "high")
    wants = [each["response_format"] for each in asked]
    assert [each["type"] for each in wants] == ["json_schema", "json_object"]
    assert wants[0]["json_schema"]["schema"] == wants[1]["schema"]


OWN = '''"""Ours."""
from workers.clients import openai

DIALECT = openai.Dialect(max_tokens="max_tokens")


def connect(settings, simulator_url):
    return openai.connect("own", "{url}/v1", name="ours", proxies=False, dialect=DIALECT)
'''


async def test_a_provider_is_one_file(
    prompts: Prompts, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with provider(always(said("hello"))) as url:
        folder = tmp_path / "own_providers"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "ours.py").write_text(OWN.format(url=url))
        monkeypatch.syspath_prepend(tmp_path)
        found = discover(importlib.import_module("own_providers"))
        asked = Prompts(prompts.versions, {"both": (Target("ours", "m"),)})
        async with open_llm(Settings(), asked, None, found) as llm:
            assert await ask(llm, ledger) == "hello"
    assert [(call.provider, call.model, call.outcome) for call in ledger.calls] == [("ours", "m", "ok")]


@pytest.mark.parametrize(
    ("alias", "says"),
    [
        ("both", "set OPENAI_API_KEY or ANTHROPIC_API_KEY, give"),
        ("azure", "set AZURE_OPENAI_API_KEY and AZURE_OPENAI_ENDPOINT, give"),
        ("local", "set LOCAL_BASE_URL, give"),
    ],
)
async def test_no_key_at_all_stops_the_boot(prompts: Prompts, alias: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        async with opened(Prompts(prompts.versions, {**prompts.models, "both": prompts.models[alias]}), None):
            pass


async def test_an_alias_without_a_provider_file_stops_the_boot(prompts: Prompts, simulator: str) -> None:
    strange = Prompts(prompts.versions, {**prompts.models, "local": (Target("ollama", "qwen"),)})
    with pytest.raises(WiringError, match=r"workers/providers/ollama\.py"):
        async with opened(strange, simulator):
            pass


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
            await llm.ask(prompt, variables, returns=str, book=ledger, model=model)
    assert not isinstance(caught.value, Outage)
    assert not ledger.calls


async def test_a_ledger_that_can_not_be_written_stops_the_call(prompts: Prompts, simulator: str) -> None:
    class Refusing(Ledger):
        async def open(self, call: Call) -> None:
            raise Outage("no ledger")

    refusing = Refusing()
    async with opened(prompts, simulator) as llm:
        with pytest.raises(Outage, match="no ledger"):
            await llm.ask("sort", {"text": "x"}, returns=str, book=refusing, model="openai")
    assert not refusing.calls
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(f"{simulator}/calls")).json()["calls"] == []


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize(("share", "opens"), [(0.30, True), (0.05, False)])
async def test_the_breaker_over_real_http(
    prompts: Prompts, ledger: Ledger, name: str, share: float, opens: bool
) -> None:
    """Thirty errors in a hundred open it, five don't: each SDK, the policy that is shipped, a simulator with a seed."""
    fault = Fault(kind="status", status=529, share=share)
    async with (
        running_simulator(behaviour=Behaviour(seed=3, latency_ms=1, faults=(fault,))) as url,
        opened(prompts, url) as llm,
    ):
        states = set[str]()
        for _ in range(30):
            await asyncio.gather(*(ask(llm, ledger, model=name) for _ in range(10)), return_exceptions=True)
            states.add(llm.breakers()[f"{name}/{MODELS[name]}"])
    assert ("open" in states) == opens
    assert len(ledger.calls) < 150 if opens else len(ledger.calls) == 300


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (401, "{}", "refuses our key"),
        (403, "{}", "refuses our key"),
        (429, '{"error": {"code": "insufficient_quota", "type": "billing_error", "message": "x"}}', "no credit left"),
    ],
)
async def test_a_key_or_an_account_that_is_no_good_opens_it_at_once(
    prompts: Prompts, ledger: Ledger, name: str, status: int, body: str, reason: str
) -> None:
    async with provider(always(body, status)) as url, opened(prompts, url) as llm:
        for _ in range(3):
            with pytest.raises(Outage, match=reason) as caught:
                await ask(llm, ledger, model=name)
            assert caught.value.free_max is None
            assert caught.value.waits_for == [f"{name}/{MODELS[name]}"]
    assert ledger.outcomes == ["setup"], "one call has told it all"


async def test_whose_failure_it_was(prompts: Prompts, ledger: Ledger) -> None:
    """With the breaker closed: perhaps the event's own, but only where the model answers others."""
    answers = iter([500, 200, 500])

    async def handle(_: Request) -> Response:
        return Response(said("well"), next(answers), media_type="application/json")

    async with provider(handle) as url, opened(prompts, url) as llm:
        with pytest.raises(Outage) as alone:
            await ask(llm, ledger, model="openai")
        await ask(llm, ledger, model="openai")
        with pytest.raises(Outage) as beside:
            await ask(llm, ledger, model="openai")
    assert (alone.value.free_max, beside.value.free_max) == (150, 5)


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
