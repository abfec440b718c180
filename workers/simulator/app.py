"""The simulator's HTTP side: OpenAI's chat and embeddings, Anthropic's messages, a pager, and logs of what came."""

import asyncio
import base64
import math
from array import array
from collections import deque
from collections.abc import Awaitable, Callable
from random import Random
from typing import Annotated, Any, Final
from urllib.parse import unquote

import msgspec
from msgspec import Meta, Struct, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from workers.simulator.replies import EMBEDDING_DIMENSIONS, embedding, reply, seed, tokens

LOG_MAX: Final = 10_000
HEADERS: Final = {"x-callboard-simulated": "1"}


class Seen(Struct, frozen=True):
    """One call as the simulator saw it: what tests hold against the ledger."""

    path: str
    model: str
    event_id: str
    step: str
    status: int
    tokens_in: int
    tokens_out: int


class Page(Struct, frozen=True):
    """One call of the pager."""

    idempotency_key: str
    body: Any


class Simulator(Struct, frozen=True):
    """`latency_s` is the median of a lognormal distribution with a seeded generator."""

    latency_s: float
    random: Random
    calls: deque[Seen]
    pages: deque[Page]


class Chat(Struct, frozen=True):
    """What both protocols ask for, as far as the reply depends on it."""

    model: str
    messages: list[Any]
    system: Any = None
    response_format: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    stream: bool | None = False

    @property
    def schema(self) -> dict[str, Any] | None:
        asked = (self.response_format or {}).get("json_schema") or (self.output_config or {}).get("format") or {}
        schema = asked.get("schema")
        return schema if isinstance(schema, dict) else None


class Texts(Struct, frozen=True):
    model: str
    input: str | list[str]
    dimensions: Annotated[int, Meta(ge=1, le=4096)] | None = None
    encoding_format: str = "float"


class Said(Struct, frozen=True):
    """A body to send, and what it counts as."""

    model: str
    body: dict[str, Any]
    tokens_in: int
    tokens_out: int


Speak = Callable[[bytes], Said]


def create_app(latency_s: float = 0.02, seeded: int = 0) -> Starlette:
    simulator = Simulator(latency_s, Random(seeded), deque(maxlen=LOG_MAX), deque(maxlen=LOG_MAX))
    return Starlette(
        routes=[
            Route("/v1/chat/completions", _endpoint(simulator, _completion, _openai_error), methods=["POST"]),
            Route("/v1/embeddings", _endpoint(simulator, _embeddings, _openai_error), methods=["POST"]),
            Route("/v1/messages", _endpoint(simulator, _message, _anthropic_error), methods=["POST"]),
            Route("/calls", _log("calls", simulator.calls), methods=["GET"]),
            Route("/pages", _log("pages", simulator.pages), methods=["GET"]),
            Route("/pages", _pager(simulator), methods=["POST"]),
        ]
    )


def _endpoint(
    simulator: Simulator, speak: Speak, error: Callable[[str], dict[str, Any]]
) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            said = speak(await request.body())
        except msgspec.DecodeError as misfit:
            return _json(error(str(misfit)), 400)
        await asyncio.sleep(simulator.latency_s * math.exp(simulator.random.gauss(0, 0.4)))
        simulator.calls.append(_seen(request, said))
        return _json(said.body, 200)

    return answer


def _pager(simulator: Simulator) -> Callable[[Request], Awaitable[Response]]:
    async def page(request: Request) -> Response:
        try:
            body = msgspec.json.decode(await request.body())
        except msgspec.DecodeError as misfit:
            return _json({"error": str(misfit)}, 400)
        simulator.pages.append(Page(request.headers.get("idempotency-key", ""), body))
        return _json({}, 202)

    return page


def _log(name: str, log: deque[Any]) -> Callable[[Request], Awaitable[Response]]:
    async def show(_: Request) -> Response:
        return _json({name: list(log)}, 200)

    return show


def _seen(request: Request, said: Said) -> Seen:
    event_id, step = (unquote(request.headers.get(f"x-callboard-{name}", "")) for name in ("event-id", "step"))
    return Seen(request.url.path, said.model, event_id, step, 200, said.tokens_in, said.tokens_out)


def _json(body: object, status: int) -> Response:
    return Response(msgspec.json.encode(body), status, HEADERS, "application/json")


def _chat(body: bytes) -> tuple[Chat, str]:
    chat = msgspec.json.decode(body, type=Chat)
    if chat.stream:
        raise ValidationError("the simulator does not stream yet")
    return chat, reply(chat.schema, seed(chat.model, chat.system, chat.messages, chat.schema))


def _completion(body: bytes) -> Said:
    chat, text = _chat(body)
    tokens_in, tokens_out = tokens(body), tokens(text)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
    head = {"id": "chatcmpl-simulated", "object": "chat.completion", "created": 0, "model": chat.model}
    return Said(chat.model, {**head, "choices": [choice], "usage": usage}, tokens_in, tokens_out)


def _message(body: bytes) -> Said:
    chat, text = _chat(body)
    tokens_in, tokens_out = tokens(body), tokens(text)
    head = {"id": "msg_simulated", "type": "message", "role": "assistant", "model": chat.model}
    content = [{"type": "text", "text": text}]
    usage = {"input_tokens": tokens_in, "output_tokens": tokens_out}
    end = {"stop_reason": "end_turn", "stop_sequence": None, "usage": usage}
    return Said(chat.model, {**head, "content": content, **end}, tokens_in, tokens_out)


def _embeddings(body: bytes) -> Said:
    asked = msgspec.json.decode(body, type=Texts)
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    dimensions = asked.dimensions or EMBEDDING_DIMENSIONS
    vectors = [embedding(text, dimensions) for text in texts]
    as_base64 = asked.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if as_base64 else vector}
        for index, vector in enumerate(vectors)
    ]
    tokens_in = sum(map(tokens, texts))
    usage = {"prompt_tokens": tokens_in, "total_tokens": tokens_in}
    return Said(asked.model, {"object": "list", "model": asked.model, "data": data, "usage": usage}, tokens_in, 0)


def _base64(vector: list[float]) -> str:
    return base64.b64encode(array("f", vector).tobytes()).decode()


def _openai_error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


def _anthropic_error(message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": "invalid_request_error", "message": message}}
