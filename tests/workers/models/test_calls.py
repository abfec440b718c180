"""What is kept of a call, and what it costs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from prompts import Price, Prompts, Target
from service.core.errors import Outage
from service.core.metrics import Waited
from tests.workers.models.asking import MODELS, PROVIDERS, Ledger, Sorted, ask, opened, provider
from workers.models.permit import Permit
from workers.models.rate_limits import RateLimiter


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
        await llm.ask("sort", {"text": "another"}, returns=str, call_log=ledger)
        await ask(llm, ledger, labels={"event_id": "e-2"})
    hashes = [call.request_hash for call in ledger.calls]
    assert hashes[0] == hashes[3]
    assert len(set(hashes)) == 3


async def test_an_unknown_price_is_said_to_be_unknown(
    prompts: Prompts, simulator: str, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    private = Prompts(prompts.versions, {**prompts.models, "both": (Target("openai", "our-own-model"),)})
    async with opened(private, simulator) as llm:
        await ask(llm, ledger)
    assert (ledger.calls[0].cost_usd, ledger.calls[0].priced) == (0.0, False)
    assert "openai our-own-model has no price, so that no budget holds it" in caplog.text


async def test_a_price_of_ones_own_goes_first(prompts: Prompts, simulator: str, ledger: Ledger) -> None:
    own = Target("openai", MODELS["openai"], Price(input=1_000_000, output=0))
    async with opened(Prompts(prompts.versions, {**prompts.models, "both": (own,)}), simulator) as llm:
        await ask(llm, ledger)
    assert (ledger.calls[0].cost_usd, ledger.calls[0].priced) == (ledger.calls[0].tokens_in, True)
    assert ledger.opened[0].cost_usd > ledger.calls[0].cost_usd, "reserved is the most it may cost"


async def test_what_a_model_thought_is_paid_for(prompts: Prompts, ledger: Ledger) -> None:
    async def thoughtful(_: Request) -> Response:
        choice = {"message": {"content": "1, 2"}, "finish_reason": "stop"}
        return JSONResponse(
            {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 105}}
        )

    async with provider(thoughtful) as url, opened(prompts, url) as llm:
        await ask(llm, ledger, model="gemini")
    assert (ledger.calls[0].tokens_in, ledger.calls[0].tokens_out) == (9, 96)


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


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "connection"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n", "connection"),
        (b"HTTP/1.1 307 Away\r\ncontent-length: 0\r\n\r\n", "server"),
    ],
    ids=["ssh", "chunks", "redirect"],
)
async def test_what_is_no_http_is_an_outage(
    prompts: Prompts, ledger: Ledger, name: str, answer: bytes, cause: str
) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(say, "127.0.0.1", 0)
    async with server, opened(prompts, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as llm:
        with pytest.raises(Outage):
            await ask(llm, ledger, model=name)
    assert [(call.outcome, call.cause) for call in ledger.calls] == [("unknown", cause)]


async def test_a_limit_of_tokens_holds_a_server_that_does_not_say_them(
    prompts: Prompts, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    permits, permitted = list[Permit](), RateLimiter.permit

    @asynccontextmanager
    async def permit(limiter: RateLimiter, most_tokens: int, waited: Waited) -> AsyncIterator[Permit]:
        async with permitted(limiter, most_tokens, waited) as made:
            yield made
        permits.append(made)

    async def silent(_: Request) -> Response:
        return Response('{"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}')

    monkeypatch.setattr(RateLimiter, "permit", permit)
    async with provider(silent) as url, opened(prompts, url) as llm:
        await ask(llm, ledger, model="local")
    assert [(each.is_sent, each.used) for each in permits] == [(True, None)], "0 would give back all that was guessed"


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
