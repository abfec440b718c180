"""One call to a model: over real HTTP, through both real SDKs, to the simulator and to servers that misbehave."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx
import pytest
import uvicorn
from msgspec import Struct
from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import workers.providers
from prompts import Price, Prompt, Prompts, Target, load
from service.errors import CallboardError, Outage, SettingsError, WiringError
from service.settings import Settings
from workers.clients.breaker import Policy
from workers.clients.llm import Call, Llm, LlmRefused, open_llm
from workers.providers import discover
from workers.simulator import running_simulator

HEAD = '+++\nmodel = "both"\nmax_tokens = 100\nvariables = ["text"]\n+++\n'
BODY = "--- system ---\nBe brief.\n--- user ---\nSort this: {{ text }}\n"
MODELS = {"openai": "gpt-6-luna", "anthropic": "claude-haiku-5-5"}
PROVIDERS = tuple(MODELS)
EAGER = Policy(ratio=0.25, calls_min=5, open_s=0.3)

T = TypeVar("T")
Handle = Callable[[Request], Awaitable[Response]]


class Sorted(Struct, frozen=True):
    intent: str
    urgency: Literal["low", "normal", "high"]


class Ledger:
    """A step's book that remembers nothing between two questions."""

    def __init__(self) -> None:
        self.opened: list[Call] = []
        self.calls: list[Call] = []

    def recall(self, asked: str) -> tuple[int, str | None]:
        return 1, None

    def recalled(self, prompt: Prompt) -> None:
        raise AssertionError("there was nothing to recall")

    async def open(self, call: Call) -> None:
        self.opened.append(call)

    async def close(self, call: Call) -> None:
        self.calls.append(call)

    async def whole(self, call: Coroutine[Any, Any, T]) -> T:
        return await call

    @property
    def outcomes(self) -> list[str]:
        return [call.cause or call.outcome for call in self.calls]


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def prompts(tmp_path: Path) -> Prompts:
    chains = {"both": PROVIDERS, "openai": ["openai"], "anthropic": ["anthropic"]}
    links = {
        alias: [f'{{ provider = "{each}", model = "{MODELS[each]}" }}' for each in chains[alias]] for alias in chains
    }
    (tmp_path / "models.toml").write_text("".join(f"{alias} = [{', '.join(links[alias])}]\n" for alias in links))
    (tmp_path / "sort").mkdir()
    (tmp_path / "sort" / "v3.md").write_text(HEAD + BODY)
    return load(tmp_path)


@pytest.fixture
async def simulator() -> AsyncIterator[str]:
    async with running_simulator(latency_s=0.001) as url:
        yield url


def opened(prompts: Prompts, url: str | None, policy: Policy | None = None) -> Any:
    return open_llm(Settings(), prompts, url, discover(workers.providers), policy)


async def ask(llm: Llm, ledger: Ledger, **more: Any) -> Any:
    arguments: dict[str, Any] = {"returns": str, "book": ledger, "timeout_s": 5} | more
    return await llm.ask("sort", {"text": "I paid twice"}, **arguments)


@asynccontextmanager
async def provider(handle: Handle) -> AsyncIterator[str]:
    """A server in a provider's place that answers as `handle` says."""
    routes = [Route(path, handle, methods=["POST"]) for path in ("/v1/chat/completions", "/v1/messages")]
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.force_exit = server.should_exit = True
        await serving


def always(body: str = "{}", status: int = 200, headers: Mapping[str, str] | None = None) -> Handle:
    async def handle(_: Request) -> Response:
        return Response(body, status, headers, "application/json")

    return handle


def said(text: str | None, openai: str | None = "stop", anthropic: str | None = "end_turn") -> str:
    """A reply that either SDK can read as its own."""
    return json.dumps(
        {
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": openai}],
            "content": [{"type": "text", "text": text}] if text is not None else [],
            "stop_reason": anthropic,
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "input_tokens": 7, "output_tokens": 3},
        }
    )


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
async def test_what_the_ledger_keeps(prompts: Prompts, simulator: str, ledger: Ledger, name: str) -> None:
    before = datetime.now(UTC)
    async with opened(prompts, simulator) as llm:
        reply = await ask(llm, ledger, model=name, labels={"event_id": "e-1", "step": "triage/ä#1"})
    (call,) = ledger.calls
    prompt = prompts.get("sort")
    assert (call.prompt, call.version, call.hash) == ("sort", 3, prompt.hash)
    assert (call.provider, call.model) == (name, MODELS[name])
    assert (call.outcome, call.reply, call.simulated, call.priced) == ("ok", reply, True, True)
    assert call.tokens_in > 0
    assert call.tokens_out > 0
    assert call.cost_usd > 0
    assert 0 < call.ms < 5000
    assert before <= call.at <= datetime.now(UTC)
    async with httpx.AsyncClient(trust_env=False) as http:
        (seen,) = (await http.get(f"{simulator}/calls")).json()["calls"]
    assert (seen["event_id"], seen["step"], seen["model"]) == ("e-1", "triage/ä#1", MODELS[name])
    assert (seen["tokens_in"], seen["tokens_out"]) == (call.tokens_in, call.tokens_out)


async def test_the_same_question_has_one_hash_whoever_is_asked(
    prompts: Prompts, simulator: str, ledger: Ledger
) -> None:
    async with opened(prompts, simulator) as llm:
        await ask(llm, ledger)
        await ask(llm, ledger, returns=Sorted)
        await llm.ask("sort", {"text": "another"}, returns=str, book=ledger)
        await ask(llm, ledger, labels={"event_id": "e-2"})
    hashes = [call.request_hash for call in ledger.calls]
    assert hashes[0] == hashes[3]
    assert len(set(hashes)) == 3


async def test_an_unknown_price_is_said_to_be_unknown(prompts: Prompts, simulator: str, ledger: Ledger) -> None:
    private = Prompts(prompts.versions, {**prompts.models, "both": (Target("openai", "our-own-model"),)})
    async with opened(private, simulator) as llm:
        await ask(llm, ledger)
    assert (ledger.calls[0].cost_usd, ledger.calls[0].priced) == (0.0, False)


async def test_a_price_of_ones_own_goes_first(prompts: Prompts, simulator: str, ledger: Ledger) -> None:
    own = Target("openai", MODELS["openai"], Price(input=1_000_000, output=0))
    async with opened(Prompts(prompts.versions, {**prompts.models, "both": (own,)}), simulator) as llm:
        await ask(llm, ledger)
    assert (ledger.calls[0].cost_usd, ledger.calls[0].priced) == (ledger.calls[0].tokens_in, True)
    assert ledger.opened[0].cost_usd > ledger.calls[0].cost_usd, "reserved is the most it may cost"


async def test_a_connection_that_is_lost_may_be_billed(prompts: Prompts, ledger: Ledger) -> None:
    async def lose(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.close()

    server = await asyncio.start_server(lose, "127.0.0.1", 0)
    async with server, opened(prompts, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as llm:
        with pytest.raises(Outage):
            await ask(llm, ledger, model="openai")
    assert [(call.outcome, call.cause) for call in ledger.calls] == [("unknown", "connection")]
    assert ledger.calls[0].cost_usd == ledger.opened[0].cost_usd > 0


async def test_a_call_that_is_cut_off_is_booked(prompts: Prompts, ledger: Ledger) -> None:
    begun = asyncio.Event()

    async def hang(_: Request) -> Response:
        begun.set()
        await asyncio.Event().wait()
        return Response()

    async with provider(hang) as url, opened(prompts, url) as llm:
        asking = asyncio.create_task(ask(llm, ledger, model="anthropic"))
        async with asyncio.timeout(5):
            await begun.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert [(call.outcome, call.cause) for call in ledger.calls] == [("unknown", "cancelled")]


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
    assert 100 in (asked[0].get("max_tokens"), asked[0].get("max_completion_tokens"))
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
    assert all(name in caught.value.cause for name in PROVIDERS)


@pytest.mark.parametrize("name", PROVIDERS)
async def test_keys_choose_the_provider_and_are_sent(prompts: Prompts, ledger: Ledger, name: str) -> None:
    seen: list[Mapping[str, str]] = []

    async def handle(request: Request) -> Response:
        seen.append(request.headers)
        return Response(said("hello"), media_type="application/json")

    async with provider(handle) as url:
        base = f"{url}/v1" if name == "openai" else url
        settings = replace(Settings(), **{f"{name}_api_key": "k-123", f"{name}_base_url": base})
        async with open_llm(settings, prompts, None, discover(workers.providers)) as llm:
            assert await ask(llm, ledger, labels={"event_id": "e"}) == "hello"
    assert [(call.provider, call.simulated) for call in ledger.calls] == [(name, False)]
    assert "k-123" in seen[0].get("authorization", "") + seen[0].get("x-api-key", "")
    assert not [header for header in seen[0] if header.startswith("x-callboard")], "labels are the simulator's only"


async def test_no_key_at_all_stops_the_boot(prompts: Prompts) -> None:
    with pytest.raises(SettingsError, match="set OPENAI_API_KEY or ANTHROPIC_API_KEY"):
        async with opened(prompts, None):
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
