"""Anthropic through its official SDK."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

import anthropic
import msgspec
from msgspec import Struct

from workers.clients.faults import Fault
from workers.clients.provider import (
    LIMITS,
    SIMULATED_HEADER,
    Answer,
    Client,
    Request,
    TransportError,
    http_fault,
    unreachable,
)

STOPS: Final[dict[str, Literal["end", "length", "refused"]]] = {
    "end_turn": "end",
    "stop_sequence": "end",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refused",
}


class _Usage(Struct):
    input_tokens: int
    output_tokens: int


class _Block(Struct):
    type: str
    text: str = ""


class _Reply(Struct):
    content: list[_Block]
    stop_reason: str
    usage: _Usage


class AnthropicClient:
    def __init__(self, sdk: anthropic.AsyncAnthropic, name: str) -> None:
        self._sdk = sdk
        self._name = name
        self._decoder = msgspec.json.Decoder(_Reply)

    async def complete(self, request: Request, timeout_s: float) -> Answer:
        try:
            raw = await self._sdk.messages.with_raw_response.create(
                **_arguments(request), extra_headers=request.headers, timeout=timeout_s
            )
            body = await raw.read()
        except anthropic.APIStatusError as error:
            raise http_fault(
                self._name, error.status_code, error.message, error.response.headers, error.type or ""
            ) from error
        except (anthropic.AnthropicError, TransportError) as error:
            raise unreachable(self._name, error) from error
        return self._answer(body, SIMULATED_HEADER in raw.headers)

    def _answer(self, body: bytes, simulated: bool) -> Answer:
        # Decoded by us, not by the SDK: it takes HTML for a str and {} for a reply full of None.
        try:
            reply = self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Fault("malformed", f"{self._name} answered 200 with what is no reply: {error}.") from error
        stop = STOPS.get(reply.stop_reason)
        texts = [block.text for block in reply.content if block.type == "text"]
        if stop is None or (stop == "end" and not texts):
            raise Fault("malformed", f"{self._name} ended a reply with {reply.stop_reason!r} and no text.")
        return Answer("".join(texts), stop, reply.usage.input_tokens, reply.usage.output_tokens, simulated)


@asynccontextmanager
async def connect(
    key: str, base_url: str | None, *, name: str = "anthropic", proxies: bool = True
) -> AsyncIterator[Client]:
    """One client for the process, on aiohttp; `proxies` says whether the proxy variables of the environment count."""
    http = anthropic.DefaultAioHttpClient(limits=LIMITS, trust_env=proxies)
    options: dict[str, Any] = {"max_retries": 0, "http_client": http, "open_telemetry": False}
    async with anthropic.AsyncAnthropic(api_key=key, base_url=base_url, **options) as sdk:
        yield AnthropicClient(sdk, name)


def _arguments(request: Request) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": request.model,
        "messages": [{"role": each.role, "content": each.content} for each in request.messages],
        "max_tokens": request.max_tokens,
    }
    if request.system:
        arguments["system"] = request.system
    if request.temperature is not None:
        arguments["temperature"] = request.temperature
    if request.schema is not None:
        arguments["output_config"] = {"format": {"type": "json_schema", "schema": request.schema.body}}
    return arguments
