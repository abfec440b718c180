"""Streams of both providers through their SDKs: told piece by piece, and every way they can break told apart."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from prompts import Prompts
from service.core.errors import Outage
from tests.eventually import eventually
from tests.workers.models.asking import EAGER, PROVIDERS, Handle, Ledger, Sorted, opened, provider, stream
from workers.models.client import LlmRefused
from workers.models.streaming import EVENT_MAX, StreamTimeouts

SHORT: Final = StreamTimeouts(total_s=10, first_s=1.0, stall_s=1.0)


def _sse(*events: Any) -> list[bytes]:
    return [f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode() for event in events]


def told(pieces: list[str], finish: str | None = "stop", reason: str | None = "end_turn") -> dict[str, list[bytes]]:
    """The same reply in both protocols, by path."""
    deltas = [{"choices": [{"delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    end = [{"choices": [{"delta": {}, "finish_reason": finish}]}, {"choices": [], "usage": usage}, "[DONE]"]
    blocks = [{"type": "content_block_delta", "delta": {"type": "text_delta", "text": piece}} for piece in pieces]
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 7, "output_tokens": 1}}}
    stop = {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 3}}
    return {
        "/v1/chat/completions": _sse(*deltas, *(end if finish else [])),
        "/v1/messages": _sse(start, {"type": "ping"}, *blocks, *([stop, {"type": "message_stop"}] if reason else [])),
    }


def _path(request: Request) -> str:
    """As `told` has it: Azure's deployments have one of their own."""
    return "/v1/chat/completions" if request.url.path.endswith("/chat/completions") else request.url.path


def saying(events: dict[str, list[bytes]], *, pause_s: float = 0.0, for_ever: bool = False) -> Handle:
    async def body(parts: list[bytes]) -> AsyncIterator[bytes]:
        for part in parts:
            yield part
            await asyncio.sleep(pause_s)
        if for_ever:
            await asyncio.Event().wait()

    async def handle(request: Request) -> Response:
        return StreamingResponse(body(events[_path(request)]), media_type="text/event-stream")

    return handle


async def _armed(simulator: str, **fault: Any) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.post(f"{simulator}/faults", json=fault)).status_code == 202


@pytest.mark.parametrize("name", PROVIDERS)
async def test_a_stream_is_told_as_it_comes(prompts: Prompts, simulator: str, ledger: Ledger, name: str) -> None:
    async with opened(prompts, simulator) as llm:
        reply = await stream(llm, ledger, model=name)
    (call,) = ledger.calls
    pieces = ledger.pieces[call.call_id]
    assert "".join(pieces) == reply == call.reply
    assert len(pieces) > 5
    assert (call.outcome, call.simulated, call.streamed) == ("ok", True, True)
    async with httpx.AsyncClient(trust_env=False) as http:
        (seen,) = (await http.get(f"{simulator}/calls")).json()["calls"]
    assert (call.tokens_in, call.tokens_out) == (seen["tokens_in"], seen["tokens_out"])
    assert call.cost_usd > 0


@pytest.mark.parametrize("name", PROVIDERS)
async def test_a_struct_streams_as_the_json_it_comes_in(
    prompts: Prompts, simulator: str, ledger: Ledger, name: str
) -> None:
    async with opened(prompts, simulator) as llm:
        reply = await stream(llm, ledger, model=name, returns=Sorted)
    assert isinstance(reply, Sorted)
    assert "".join(ledger.pieces[ledger.calls[0].call_id]) == ledger.calls[0].reply


@pytest.mark.parametrize("name", PROVIDERS)
async def test_pieces_are_told_before_the_stream_has_ended(prompts: Prompts, ledger: Ledger, name: str) -> None:
    async with provider(saying(told(["One", " two"], None, None), for_ever=True)) as url, opened(prompts, url) as llm:
        asking = asyncio.create_task(stream(llm, ledger, model=name))

        async def heard() -> bool:
            return [*ledger.pieces.values()] == [["One", " two"]]

        await eventually(heard)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    assert [(call.outcome, call.cause) for call in ledger.calls] == [("unknown", "cancelled")]


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ({"kind": "truncated"}, "malformed"),
        ({"kind": "malformed"}, "malformed"),
        ({"kind": "html"}, "malformed"),
        ({"kind": "empty"}, "malformed"),
        ({"kind": "cut"}, "connection"),
        ({"kind": "reset"}, "connection"),
        ({"kind": "error_event"}, "server"),
        ({"kind": "stall"}, "timeout"),
        ({"kind": "hang"}, "timeout"),
        ({"kind": "drip", "wait_s": 1.5}, "timeout"),
        ({"kind": "status", "status": 529}, "server"),
        ({"kind": "status", "status": 429}, "rate_limited"),
    ],
    ids=str,
)
async def test_a_stream_that_breaks_is_an_outage_and_never_done(
    prompts: Prompts, simulator: str, ledger: Ledger, name: str, fault: dict[str, Any], outcome: str
) -> None:
    await _armed(simulator, **fault)
    async with opened(prompts, simulator) as llm:
        with pytest.raises(Outage):
            await stream(llm, ledger, model=name, **({"timeouts": SHORT} if outcome == "timeout" else {}))
    assert ledger.outcomes == [outcome]
    assert ledger.calls[0].reply is None


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize(("fault", "outcome"), [("refusal", "refused"), ("length", "length")])
async def test_what_the_model_ends_itself_is_for_the_event_to_fail(
    prompts: Prompts, simulator: str, ledger: Ledger, name: str, fault: str, outcome: str
) -> None:
    await _armed(simulator, kind=fault)
    async with opened(prompts, simulator) as llm:
        with pytest.raises(LlmRefused):
            await stream(llm, ledger, model=name)
    assert ledger.outcomes == [outcome]


@pytest.mark.parametrize("name", PROVIDERS)
async def test_json_that_breaks_off_in_a_stream_that_ends_well_is_asked_again(
    prompts: Prompts, ledger: Ledger, name: str
) -> None:
    async with provider(saying(told(['{"intent": "a"', ', "urg']))) as url, opened(prompts, url) as llm:
        with pytest.raises(LlmRefused, match="asked twice"):
            await stream(llm, ledger, model=name, returns=Sorted)
    assert ledger.outcomes == ["invalid", "invalid"]


@pytest.mark.parametrize("name", PROVIDERS)
async def test_the_stall_is_between_pieces_and_the_total_over_all(prompts: Prompts, ledger: Ledger, name: str) -> None:
    async with provider(saying(told(list("abcdefgh")), pause_s=0.2)) as url, opened(prompts, url) as llm:
        assert await stream(llm, ledger, model=name, timeouts=StreamTimeouts(9, 1.0, 1.0)) == "abcdefgh"
        with pytest.raises(Outage, match=r"no whole reply in 0\.8 s"):
            await stream(llm, ledger, model=name, timeouts=StreamTimeouts(0.8, 1.0, 1.0))


@pytest.mark.parametrize("name", PROVIDERS)
async def test_a_body_that_stays_open_behind_the_end_does_not_hold_the_reply(
    prompts: Prompts, ledger: Ledger, name: str
) -> None:
    async with provider(saying(told(["whole"]), for_ever=True)) as url, opened(prompts, url) as llm:
        assert await stream(llm, ledger, model=name) == "whole"


async def test_pings_are_no_tokens(prompts: Prompts, ledger: Ledger) -> None:
    pings = _sse(*[{"type": "ping"}] * 30)
    async with provider(saying({"/v1/messages": pings}, pause_s=0.1)) as url, opened(prompts, url) as llm:
        with pytest.raises(Outage, match=r"gave no token in 1 s"):
            await stream(llm, ledger, model="anthropic", timeouts=SHORT)


@pytest.mark.parametrize("name", PROVIDERS)
async def test_an_event_without_an_end_is_bounded(prompts: Prompts, ledger: Ledger, name: str) -> None:
    endless = dict.fromkeys(told([]), [b"data: " + b"x" * (EVENT_MAX // 4)] * 8)
    async with provider(saying(endless)) as url, opened(prompts, url) as llm:
        with pytest.raises(Outage, match="more than"):
            await stream(llm, ledger, model=name)
    assert ledger.outcomes == ["malformed"]


async def test_the_next_provider_begins_anew_and_its_pieces_are_its_own(
    prompts: Prompts, simulator: str, ledger: Ledger
) -> None:
    await _armed(simulator, kind="cut", times=1)
    async with opened(prompts, simulator) as llm:
        reply = await stream(llm, ledger)
    assert [(call.provider, call.outcome) for call in ledger.calls] == [("openai", "unknown"), ("anthropic", "ok")]
    first, second = (ledger.pieces[call.call_id] for call in ledger.calls)
    assert "".join(second) == reply
    assert 0 < len("".join(first)) < len(reply)


@pytest.mark.parametrize("name", PROVIDERS)
async def test_the_breaker_opens_on_streams_that_break(
    prompts: Prompts, simulator: str, ledger: Ledger, name: str
) -> None:
    await _armed(simulator, kind="truncated")
    async with opened(prompts, simulator, EAGER) as llm:
        for _ in range(EAGER.calls_min):
            with pytest.raises(Outage):
                await stream(llm, ledger, model=name)
        with pytest.raises(Outage, match="circuit breaker"):
            await stream(llm, ledger, model=name)
    assert len(ledger.calls) == EAGER.calls_min


@pytest.mark.parametrize("name", PROVIDERS)
async def test_a_stream_that_is_given_up_closes_its_connection(prompts: Prompts, ledger: Ledger, name: str) -> None:
    closed = asyncio.Event()

    async def body(path: str) -> AsyncIterator[bytes]:
        try:
            for each in _halved(path):
                yield each
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def handle(request: Request) -> Response:
        return StreamingResponse(body(_path(request)), media_type="text/event-stream")

    async with provider(handle) as url, opened(prompts, url) as llm:
        with pytest.raises(Outage):
            await stream(llm, ledger, model=name, timeouts=SHORT)
        async with asyncio.timeout(5):
            await closed.wait()


def _halved(path: str) -> Iterator[bytes]:
    yield from told(["half"], None, None)[path]


async def test_a_reply_that_does_not_say_its_tokens_costs_the_most_it_may(prompts: Prompts, ledger: Ledger) -> None:
    """Or a budget would not hold a server that keeps them to itself."""
    events = told(["One"])
    silent = {path: [part for part in parts if b"usage" not in part] for path, parts in events.items()}
    for each in (events, silent):
        async with provider(saying(each)) as url, opened(prompts, url) as llm:
            assert await stream(llm, ledger, model="openai") == "One"
    said, unsaid = ledger.calls
    assert (said.tokens_in, said.tokens_out, unsaid.tokens_in, unsaid.tokens_out) == (7, 3, 0, 0)
    assert unsaid.cost_usd > said.cost_usd > 0
