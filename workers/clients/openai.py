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
    Texts,
    TransportError,
    http_fault,
    unreachable,
)

STOPS: Final[dict[str, Literal["end", "length", "refused"]]] = {
    "stop": "end",
    "length": "length",
    "model_length": "length",  # Mistral's, where the context is full
    "content_filter": "refused",
}


class Dialect(Struct, frozen=True):
    """In what servers that speak OpenAI's protocol differ.

    `max_tokens` is what the bound of a reply is called; `json` how a schema is asked for: OpenAI's way, or as
    `json_object` with a `schema`, which llama-cpp-python's server has.
    """

    max_tokens: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    json: Literal["json_schema", "json_object"] = "json_schema"


OPENAI: Final = Dialect()


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


class _Vector(Struct):
    index: int
    embedding: list[float]


class _Vectors(Struct):
    data: list[_Vector]
    usage: _Usage | None = None


class OpenAIClient:
    def __init__(self, sdk: openai.AsyncOpenAI, name: str, dialect: Dialect) -> None:
        self._sdk = sdk
        self._name = name
        self._dialect = dialect
        self._decoder = msgspec.json.Decoder(_Reply)
        self._vectors = msgspec.json.Decoder(_Vectors)

    async def complete(self, request: Request, timeout_s: float) -> Answer:
        try:
            raw = await self._sdk.chat.completions.with_raw_response.create(
                # All else as the extra body: it is plain JSON already, and the SDK's walk over it costs 1 ms a call.
                model=request.model,
                messages=[],
                extra_body=_body(request, self._dialect),
                extra_headers=request.headers,
                timeout=timeout_s,
            )
        except openai.APIStatusError as error:
            raise http_fault(
                self._name, error.status_code, error.message, error.response.headers, error.code or ""
            ) from error
        except (openai.OpenAIError, TransportError) as error:
            raise unreachable(self._name, error) from error
        return self._answer(raw.content, SIMULATED_HEADER in raw.headers)

    async def embed(self, request: Texts, timeout_s: float) -> Answer:
        try:
            raw = await self._sdk.embeddings.with_raw_response.create(
                model=request.model,
                input=list(request.texts),
                encoding_format="float",
                extra_headers=request.headers,
                timeout=timeout_s,
            )
        except openai.APIStatusError as error:
            raise http_fault(
                self._name, error.status_code, error.message, error.response.headers, error.code or ""
            ) from error
        except (openai.OpenAIError, TransportError) as error:
            raise unreachable(self._name, error) from error
        try:
            reply = self._vectors.decode(raw.content)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Fault("malformed", f"{self._name} answered 200 with what are no vectors: {error}.") from error
        rows = sorted(reply.data, key=lambda each: each.index)
        if [each.index for each in rows] != list(range(len(rows))):
            raise Fault("malformed", f"{self._name} numbers its vectors {[each.index for each in rows[:9]]}.")
        tokens_in = reply.usage.prompt_tokens if reply.usage else 0
        vectors = [each.embedding for each in rows]
        return Answer(None, "end", tokens_in, 0, SIMULATED_HEADER in raw.headers, vectors)

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
    key: str,
    base_url: str | None,
    *,
    name: str = "openai",
    proxies: bool = True,
    dialect: Dialect = OPENAI,
) -> AsyncIterator[Client]:
    """One client for the process, on aiohttp; `proxies` says whether the proxy variables of the environment count."""
    http = openai.DefaultAioHttpClient(limits=LIMITS, trust_env=proxies)
    async with openai.AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0, http_client=http) as sdk:
        yield OpenAIClient(sdk, name, dialect)


@asynccontextmanager
async def connect_azure(key: str, endpoint: str, version: str, *, proxies: bool = True) -> AsyncIterator[Client]:
    """For the interface that has dated versions: a path for each deployment, which is what `model` names."""
    http = openai.DefaultAioHttpClient(limits=LIMITS, trust_env=proxies)
    async with openai.AsyncAzureOpenAI(
        api_key=key, azure_endpoint=endpoint, api_version=version, max_retries=0, http_client=http
    ) as sdk:
        yield OpenAIClient(sdk, "azure", OPENAI)


def _body(request: Request, dialect: Dialect) -> dict[str, Any]:
    messages: list[dict[str, str]] = [{"role": "system", "content": request.system}] if request.system else []
    messages += [{"role": each.role, "content": each.content} for each in request.messages]
    body: dict[str, Any] = {"messages": messages, dialect.max_tokens: request.max_tokens}
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.schema is not None and dialect.json == "json_object":
        body["response_format"] = {"type": "json_object", "schema": request.schema.body}
    elif request.schema is not None:
        schema = {"name": request.schema.name, "strict": True, "schema": request.schema.body}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body
