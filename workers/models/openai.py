"""OpenAI, and whatever speaks its protocol, through the official SDK."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final, Literal

import msgspec
import openai
from msgspec import Meta, Struct

from workers.models.errors import Fault
from workers.models.provider import Answer, Client, Request, Texts
from workers.models.sdk import Sdk, absolute, cookieless, transport
from workers.models.streaming import OnText, StreamTimeouts, broken_off

STOPS: Final[dict[str, Literal["end", "length", "refused"]]] = {
    "stop": "end",
    "length": "length",
    "model_length": "length",  # Mistral's, where the context is full
    "content_filter": "refused",
}

COMPLETIONS: Final = "/chat/completions"
EMBEDDINGS: Final = "/embeddings"
STATUSES: Final = {"insufficient_quota": 402, "rate_limit_exceeded": 429, "invalid_request_error": 400}


class Dialect(Struct, frozen=True):
    """In what servers that speak OpenAI's protocol differ.

    `max_tokens` is what the bound of a reply is called; `json` how a schema is asked for: OpenAI's way, or as
    `json_object` with a `schema`, which llama-cpp-python's server has. `usage_unasked`: a stream says its tokens by
    itself, and to be asked for them with `stream_options` is an error (Mistral's 422).
    """

    max_tokens: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    json: Literal["json_schema", "json_object"] = "json_schema"
    usage_unasked: bool = False


OPENAI: Final = Dialect()


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0

    @property
    def tokens_out(self) -> int:
        """With what the model thought, which is billed: Gemini counts it in the total alone."""
        return max(self.completion_tokens, self.total_tokens - self.prompt_tokens)


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


class _Part(Struct):
    delta: _Message = msgspec.field(default_factory=_Message)
    finish_reason: str | None = None


class _Error(Struct):
    message: str = ""
    type: str | None = None
    code: str | int | None = None


class _Chunk(Struct):
    choices: list[_Part] = []
    usage: _Usage | None = None
    error: _Error | None = None


class OpenAIClient:
    def __init__(self, sdk: openai.AsyncOpenAI, name: str, dialect: Dialect) -> None:
        self._sdk = Sdk(sdk, name, openai.APIStatusError, openai.OpenAIError)
        self._dialect = dialect
        # Azure's client finds the deployment by the path alone, and puts it before that.
        is_azure = isinstance(sdk, openai.AsyncAzureOpenAI)
        self._completions = COMPLETIONS if is_azure else absolute(sdk, COMPLETIONS)
        self._embeddings = EMBEDDINGS if is_azure else absolute(sdk, EMBEDDINGS)

    async def complete(self, request: Request, timeout_s: float) -> Answer:
        body = _body(request, self._dialect)
        reply, simulated = await self._sdk.ask(self._completions, body, request, timeout_s, _Reply)
        choice = reply.choices[0]
        return _answer(self._sdk.name, choice.message, choice.finish_reason, reply.usage, simulated)

    async def embed(self, request: Texts, timeout_s: float) -> Answer:
        body = {"model": request.model, "input": request.texts, "encoding_format": "float"}
        reply, simulated = await self._sdk.ask(self._embeddings, body, request, timeout_s, _Vectors)
        rows = sorted(reply.data, key=lambda row: row.index)
        if [row.index for row in rows] != list(range(len(rows))):
            raise Fault("malformed", f"{self._sdk.name} numbers its vectors {[row.index for row in rows[:9]]}.")
        tokens_in = reply.usage.prompt_tokens if reply.usage else 0
        return Answer(None, "end", tokens_in, 0, simulated, [row.embedding for row in rows])

    async def stream(self, request: Request, timeouts: StreamTimeouts, on_text: OnText) -> Answer:
        listener, body = _Listener(self._sdk.name), _stream_body(request, self._dialect)
        simulated = await self._sdk.listen(self._completions, body, request, listener, timeouts, on_text)
        return listener.answer(simulated)


class _Listener:
    """A chat completion, chunk by chunk."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.over = False
        self._texts: list[str] = []
        self._refusal = ""
        self._stop: str | None = None
        self._usage: _Usage | None = None

    def take(self, data: bytes) -> str | None:
        if data == b"[DONE]":
            self.over = True
            return None
        chunk = CHUNK.decode(data)
        if chunk.error is not None:
            status = STATUSES.get(str(chunk.error.code)) or STATUSES.get(str(chunk.error.type)) or 500
            raise broken_off(self.name, status, chunk.error.message)
        self._usage = chunk.usage or self._usage
        if not chunk.choices:
            return None
        part = chunk.choices[0]
        self._stop = part.finish_reason or self._stop
        self._refusal += part.delta.refusal or ""
        if part.delta.content:
            self._texts.append(part.delta.content)
        return part.delta.content or ("" if part.delta.refusal else None)

    def answer(self, simulated: bool) -> Answer:
        if self._stop is None:
            raise Fault("malformed", f"{self.name} ended its stream without a finish_reason.")
        message = _Message("".join(self._texts) if self._texts else None, self._refusal or None)
        return _answer(self.name, message, self._stop, self._usage, simulated)


CHUNK: Final = msgspec.json.Decoder(_Chunk)


def _answer(name: str, message: _Message, finish: str, usage: _Usage | None, simulated: bool) -> Answer:
    stop = "refused" if message.refusal else STOPS.get(finish)
    if stop is None or (stop == "end" and message.content is None):
        raise Fault("malformed", f"{name} ended a reply with {finish!r} and no text.")
    usage = usage or _Usage()
    text = message.content or message.refusal or ""
    return Answer(text, stop, usage.prompt_tokens, usage.tokens_out, simulated)


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
    http = cookieless(openai.DefaultAioHttpClient(**transport(proxies=proxies)))
    async with openai.AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0, http_client=http) as sdk:
        yield OpenAIClient(sdk, name, dialect)


@asynccontextmanager
async def connect_azure(key: str, endpoint: str, version: str, *, proxies: bool = True) -> AsyncIterator[Client]:
    """For the interface that has dated versions: a path for each deployment, which is what `model` names."""
    http = cookieless(openai.DefaultAioHttpClient(**transport(proxies=proxies)))
    async with openai.AsyncAzureOpenAI(
        api_key=key, azure_endpoint=endpoint, api_version=version, max_retries=0, http_client=http
    ) as sdk:
        yield OpenAIClient(sdk, "azure", OPENAI)


def _body(request: Request, dialect: Dialect) -> dict[str, Any]:
    messages: list[dict[str, str]] = [{"role": "system", "content": request.system}] if request.system else []
    messages += [{"role": message.role, "content": message.content} for message in request.messages]
    body: dict[str, Any] = {"model": request.model, "messages": messages, dialect.max_tokens: request.max_tokens}
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.schema is not None and dialect.json == "json_object":
        body["response_format"] = {"type": "json_object", "schema": request.schema.body}
    elif request.schema is not None:
        schema = {"name": request.schema.name, "strict": request.schema.strict, "schema": request.schema.body}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _stream_body(request: Request, dialect: Dialect) -> dict[str, Any]:
    options = {} if dialect.usage_unasked else {"stream_options": {"include_usage": True}}
    return {**_body(request, dialect), "stream": True, **options}
