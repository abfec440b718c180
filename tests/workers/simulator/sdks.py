"""The real SDKs, asking one question, plain or as a stream."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from anthropic import AsyncAnthropic
from msgspec import Struct
from openai import AsyncOpenAI

MODEL: Final = "m"
HELLO: Final[Any] = [{"role": "user", "content": "Hello"}]
TIMEOUT_S: Final = 10.0


class Heard(Struct, frozen=True):
    """What an SDK gave out, in one shape for both; `stop` is None where it never came."""

    text: str | None
    stop: str | None
    tokens: tuple[int, int] | None = None
    pieces: int = 1


Ask = Callable[..., Awaitable[Heard]]


@asynccontextmanager
async def asking(name: str, url: str) -> AsyncIterator[Ask]:
    """`ask(**arguments)` of the SDK called `name`, with `streams=True` or without."""
    if name == "openai":
        async with AsyncOpenAI(api_key="x", base_url=f"{url}/v1", max_retries=0, timeout=TIMEOUT_S) as openai:
            yield lambda **more: _openai(openai, **more)
    else:
        async with AsyncAnthropic(api_key="x", base_url=url, max_retries=0, timeout=TIMEOUT_S) as anthropic:
            yield lambda **more: _anthropic(anthropic, **more)


async def _openai(sdk: AsyncOpenAI, *, streams: bool = False, fault: str = "", **more: Any) -> Heard:
    headers = {"x-callboard-fault": fault} if fault else None
    arguments: dict[str, Any] = {"model": MODEL, "messages": HELLO, "extra_headers": headers, **more}
    if not streams:
        completion = await sdk.chat.completions.create(**arguments)
        choice, usage = completion.choices[0], completion.usage
        assert usage
        text = choice.message.content or choice.message.refusal
        return Heard(text, choice.finish_reason, (usage.prompt_tokens, usage.completion_tokens))
    text, stop, tokens, pieces = "", None, None, 0
    stream = await sdk.chat.completions.create(stream=True, stream_options={"include_usage": True}, **arguments)
    async for chunk in stream:
        if chunk.usage:
            tokens = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
        for each in chunk.choices:
            text += each.delta.content or each.delta.refusal or ""
            stop, pieces = each.finish_reason or stop, pieces + 1
    return Heard(text, stop, tokens, pieces)


async def _anthropic(sdk: AsyncAnthropic, *, streams: bool = False, fault: str = "", **more: Any) -> Heard:
    headers = {"x-callboard-fault": fault} if fault else None
    arguments: dict[str, Any] = {
        "model": MODEL,
        "messages": HELLO,
        "max_tokens": 1000,
        "extra_headers": headers,
        **more,
    }
    if not streams:
        completion = await sdk.messages.create(**arguments)
        text = "".join(block.text for block in completion.content)
        return Heard(text, completion.stop_reason, (completion.usage.input_tokens, completion.usage.output_tokens))
    text, stop, tokens_in, tokens_out, pieces = "", None, 0, 0, 0
    async for event in await sdk.messages.create(stream=True, **arguments):
        pieces += 1
        if event.type == "message_start":
            tokens_in = event.message.usage.input_tokens
        elif event.type == "content_block_delta":
            text += event.delta.text
        elif event.type == "message_delta":
            stop, tokens_out = event.delta.stop_reason, event.usage.output_tokens
    return Heard(text, stop, (tokens_in, tokens_out), pieces)
