"""In what the servers that speak OpenAI's protocol differ, and what they are sent."""

from typing import Any, Final, Literal

from msgspec import Struct

from workers.clients.provider import Request


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


def body_of(request: Request, dialect: Dialect) -> dict[str, Any]:
    messages: list[dict[str, str]] = [{"role": "system", "content": request.system}] if request.system else []
    messages += [{"role": each.role, "content": each.content} for each in request.messages]
    body: dict[str, Any] = {"model": request.model, "messages": messages, dialect.max_tokens: request.max_tokens}
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.schema is not None and dialect.json == "json_object":
        body["response_format"] = {"type": "json_object", "schema": request.schema.body}
    elif request.schema is not None:
        schema = {"name": request.schema.name, "strict": True, "schema": request.schema.body}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def stream_body(request: Request, dialect: Dialect) -> dict[str, Any]:
    asked = {} if dialect.usage_unasked else {"stream_options": {"include_usage": True}}
    return {**body_of(request, dialect), "stream": True, **asked}
