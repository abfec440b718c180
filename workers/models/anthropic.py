"""Anthropic through its official SDK."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

import anthropic
import msgspec
from msgspec import Struct

from workers.models.errors import Fault
from workers.models.provider import Answer, Client, Request
from workers.models.sdk import Sdk, absolute, cookieless, transport
from workers.models.streaming import OnText, StreamTimeouts, broken_off

STOPS: Final[dict[str, Literal["end", "length", "refused"]]] = {
    "end_turn": "end",
    "stop_sequence": "end",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refused",
}

MESSAGES: Final = "/v1/messages"
STATUSES: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
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


class _Begin(Struct):
    usage: _Usage


class _Delta(Struct):
    text: str = ""
    stop_reason: str | None = None


class _Written(Struct):
    output_tokens: int


class _Error(Struct):
    type: str = ""
    message: str = ""


class _Event(Struct):
    type: str
    message: _Begin | None = None
    delta: _Delta | None = None
    usage: _Written | None = None
    error: _Error | None = None


class AnthropicClient:
    def __init__(self, sdk: anthropic.AsyncAnthropic, name: str) -> None:
        self._sdk = Sdk(sdk, name, anthropic.APIStatusError, anthropic.AnthropicError)
        self._messages = absolute(sdk, MESSAGES)

    async def complete(self, request: Request, timeout_s: float) -> Answer:
        reply, simulated = await self._sdk.ask(self._messages, _body(request), request, timeout_s, _Reply)
        texts = [block.text for block in reply.content if block.type == "text"]
        return _answer(self._sdk.name, texts, reply.stop_reason, reply.usage, simulated)

    async def stream(self, request: Request, timeouts: StreamTimeouts, on_text: OnText) -> Answer:
        listener, body = _Listener(self._sdk.name), {**_body(request), "stream": True}
        simulated = await self._sdk.listen(self._messages, body, request, listener, timeouts, on_text)
        return listener.answer(simulated)


class _Listener:
    """A message, event by event."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.over = False
        self._texts: list[str] = []
        self._stop: str | None = None
        self._usage = _Usage(0, 0)

    def take(self, data: bytes) -> str | None:
        event = EVENT.decode(data)
        if event.error is not None:
            raise broken_off(self.name, STATUSES.get(event.error.type, 500), event.error.message)
        if event.message is not None:
            self._usage = event.message.usage
        if event.usage is not None:
            self._usage.output_tokens = event.usage.output_tokens
        self.over = self.over or event.type == "message_stop"
        if event.delta is None:
            return None
        self._stop = event.delta.stop_reason or self._stop
        if event.delta.text:
            self._texts.append(event.delta.text)
        return event.delta.text

    def answer(self, simulated: bool) -> Answer:
        if self._stop is None or not self.over:
            raise Fault("malformed", f"{self.name} ended its stream without a message_stop.")
        return _answer(self.name, self._texts, self._stop, self._usage, simulated)


EVENT: Final = msgspec.json.Decoder(_Event)


def _answer(name: str, texts: list[str], reason: str, usage: _Usage, simulated: bool) -> Answer:
    stop = STOPS.get(reason)
    if stop is None or (stop == "end" and not texts):
        raise Fault("malformed", f"{name} ended a reply with {reason!r} and no text.")
    return Answer("".join(texts), stop, usage.input_tokens, usage.output_tokens, simulated)


@asynccontextmanager
async def connect(
    key: str, base_url: str | None, *, name: str = "anthropic", proxies: bool = True
) -> AsyncIterator[Client]:
    """One client for the process, on aiohttp; `proxies` says whether the proxy variables of the environment count."""
    http = cookieless(anthropic.DefaultAioHttpClient(**transport(proxies=proxies)))
    options: dict[str, Any] = {"max_retries": 0, "http_client": http, "open_telemetry": False}
    async with anthropic.AsyncAnthropic(api_key=key, base_url=base_url, **options) as sdk:
        yield AnthropicClient(sdk, name)


def _body(request: Request) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        "max_tokens": request.max_tokens,
    }
    if request.system:
        body["system"] = request.system
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.schema is not None:
        body["output_config"] = {"format": {"type": "json_schema", "schema": request.schema.body}}
    return body
