"""OpenAI, and whatever speaks its protocol, through the official SDK."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final, Literal

import msgspec
import openai
from msgspec import Meta, Struct

from workers.clients.faults import Fault
from workers.clients.provider import (
    LIMITS,
    SIMULATED_HEADER,
    Answer,
    Client,
    Request,
    Response,
    TransportError,
    http_fault,
    unreachable,
)

STOPS: Final[dict[str, Literal["end", "length", "refused"]]] = {
    "stop": "end",
    "length": "length",
    "content_filter": "refused",
}


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Message(Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(Struct):
    message: _Message
    finish_reason: str


class _Reply(Struct):
    choices: Annotated[list[_Choice], Meta(min_length=1)]
    usage: _Usage | None = None


class OpenAIClient:
    def __init__(self, sdk: openai.AsyncOpenAI, name: str) -> None:
        self._sdk = sdk
        self._name = name
        self._decoder = msgspec.json.Decoder(_Reply)

    async def complete(self, request: Request, timeout_s: float) -> Answer:
        try:
            # The SDK's door for plain JSON: its walk over the arguments of `create` costs 0.2 ms a call.
            raw = await self._sdk.post(
                "/chat/completions",
                cast_to=Response,
                body=_body(request),
                options={"headers": request.headers, "timeout": timeout_s},
            )
        except openai.APIStatusError as error:
            raise http_fault(
                self._name, error.status_code, error.message, error.response.headers, error.code or ""
            ) from error
        except (openai.OpenAIError, TransportError) as error:
            raise unreachable(self._name, error) from error
        return self._answer(raw.content, SIMULATED_HEADER in raw.headers)

    def _answer(self, body: bytes, simulated: bool) -> Answer:
        # Decoded by us, not by the SDK: it takes HTML for a str and {} for a reply full of None.
        try:
            reply = self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Fault("malformed", f"{self._name} answered 200 with what is no reply: {error}.") from error
        choice, usage = reply.choices[0], reply.usage or _Usage()
        stop = "refused" if choice.message.refusal else STOPS.get(choice.finish_reason)
        if stop is None or (stop == "end" and choice.message.content is None):
            raise Fault("malformed", f"{self._name} ended a reply with {choice.finish_reason!r} and no text.")
        text = choice.message.content or choice.message.refusal or ""
        return Answer(text, stop, usage.prompt_tokens, usage.completion_tokens, simulated)


@asynccontextmanager
async def connect(
    key: str, base_url: str | None, *, name: str = "openai", proxies: bool = True
) -> AsyncIterator[Client]:
    """One client for the process, on aiohttp; `proxies` says whether the proxy variables of the environment count."""
    http = openai.DefaultAioHttpClient(limits=LIMITS, trust_env=proxies)
    async with openai.AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0, http_client=http) as sdk:
        yield OpenAIClient(sdk, name)


def _body(request: Request) -> dict[str, Any]:
    messages: list[dict[str, str]] = [{"role": "system", "content": request.system}] if request.system else []
    messages += [{"role": each.role, "content": each.content} for each in request.messages]
    body: dict[str, Any] = {"model": request.model, "messages": messages, "max_completion_tokens": request.max_tokens}
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.schema is not None:
        schema = {"name": request.schema.name, "strict": True, "schema": request.schema.body}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body
