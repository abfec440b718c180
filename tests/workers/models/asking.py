"""Questions put to one client over real HTTP: to the simulator and to servers that misbehave."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar
from uuid import UUID

from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import workers.providers
from prompts import Prompt, Prompts
from service.core.settings import Settings
from tests.listening import listening_on
from workers.models.call_log import Source
from workers.models.circuit_breaker import Policy
from workers.models.client import Call, Llm, open_llm
from workers.models.streaming import StreamTimeouts
from workers.providers import discover

HEAD = '+++\nmodel = "both"\nmax_tokens = 100\nvariables = ["text"]\n+++\n'
BODY = "--- system ---\nBe brief.\n--- user ---\nSort this: {{ text }}\n"
MODELS = {
    "openai": "gpt-6-luna",
    "anthropic": "claude-haiku-5-5",
    "azure": "gpt-6-luna",
    "gemini": "gemini-2.5-flash",
    "mistral": "mistral-small-latest",
    "local": "qwen3:8b",
}
PROVIDERS = tuple(MODELS)
PAIR = PROVIDERS[:2]
AZURE = "/openai/deployments/{model}"
PATHS = (
    "/v1/chat/completions",
    "/v1/messages",
    f"{AZURE}/chat/completions",
    "/openai/v1/chat/completions",
    "/v1/embeddings",
    f"{AZURE}/embeddings",
)
EAGER = Policy(ratio=0.25, calls_min=5, open_s=0.3)

T = TypeVar("T")
Handle = Callable[[Request], Awaitable[Response]]


class Sorted(Struct, frozen=True):
    intent: str
    urgency: Literal["low", "normal", "high"]


class Ledger:
    """A step's call log that remembers nothing between two questions."""

    def __init__(self) -> None:
        self.opened: list[Call] = []
        self.calls: list[Call] = []
        self.pieces: dict[UUID, list[str]] = {}

    @property
    def asker(self) -> object:
        return self

    def recall(self, asked: str) -> tuple[int, str | None]:
        return 1, None

    def recalled(self, prompt: Prompt | Source) -> None:
        raise AssertionError("there was nothing to recall")

    async def open(self, call: Call) -> None:
        self.opened.append(call)

    def text_delta(self, call: Call, text: str) -> None:
        self.pieces.setdefault(call.call_id, []).append(text)

    async def close(self, call: Call) -> None:
        self.calls.append(call)

    async def shield(self, call: Coroutine[Any, Any, T]) -> T:
        return await call

    @property
    def outcomes(self) -> list[str]:
        return [call.cause or call.outcome for call in self.calls]


def opened(prompts: Prompts, url: str | None, policy: Policy | None = None) -> Any:
    return open_llm(Settings(), prompts, url, discover(workers.providers), policy)


async def ask(llm: Llm, ledger: Ledger, **more: Any) -> Any:
    arguments: dict[str, Any] = {"returns": str, "call_log": ledger, "timeout_s": 5} | more
    return await llm.ask("sort", {"text": "I paid twice"}, **arguments)


async def stream(llm: Llm, ledger: Ledger, **more: Any) -> Any:
    arguments: dict[str, Any] = {"returns": str, "call_log": ledger, "timeouts": StreamTimeouts(5, 5, 5)} | more
    return await llm.stream("sort", {"text": "I paid twice"}, **arguments)


@asynccontextmanager
async def provider(handle: Handle) -> AsyncIterator[str]:
    """A server in a provider's place that answers as `handle` says."""
    routes = [Route(path, handle, methods=["POST"]) for path in PATHS]
    async with listening_on(Starlette(routes=routes), force=True, lifespan="off") as url:
        yield url


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
