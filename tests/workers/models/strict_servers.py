"""Raw servers in the place of OpenAI and Anthropic that refuse a schema as the provider does.

They share nothing with our simulator: the socket is asyncio's, the rules are a meta-schema for the jsonschema library,
written from the providers' pages, and counts that no meta-schema can say.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

from jsonschema import Draft202012Validator

from workers.simulator.replies import embedding, reply, seed

JSON_TYPES: Final = ["string", "number", "integer", "boolean", "null"]


def _scalar(type_: str, **keywords: Any) -> dict[str, Any]:
    """The node of one JSON type, whose enum and const are of that type too."""
    value = {"type": type_}
    shared = {"description": {"type": "string"}, "title": {"type": "string"}}
    return {
        "type": "object",
        "properties": {
            "type": {"const": type_},
            "enum": {"type": "array", "minItems": 1, "items": value},
            "const": value,
            **shared,
            **keywords,
        },
        "required": ["type"],
        "additionalProperties": False,
    }


def _compound(type_: str, **keywords: Any) -> dict[str, Any]:
    shared = {"description": {"type": "string"}, "title": {"type": "string"}}
    properties = {"type": {"const": type_}, **shared, **keywords}
    needed = [name for name in keywords if not name.startswith(("min", "max"))]
    return {
        "type": "object",
        "properties": properties,
        "required": ["type", *needed],
        "additionalProperties": False,
    }


NODE: Final = {"$ref": "#/$defs/node"}
BOUND: Final = {"type": "number"}
COUNT: Final = {"type": "integer", "minimum": 0}
BOUNDS: Final = dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), BOUND)
FORMATS: Final = ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"]
OBJECT: Final = _compound(
    "object",
    properties={"type": "object", "additionalProperties": NODE},
    required={"type": "array", "uniqueItems": True, "items": {"type": "string"}},
    additionalProperties={"const": False},
)
# What a node is, and what the root is, in OpenAI's strict mode.
META: Final = {
    **OBJECT,
    "$defs": {
        "node": {
            "oneOf": [
                _scalar("string", pattern={"type": "string"}, format={"enum": FORMATS}),
                _scalar("number", **BOUNDS),
                _scalar("integer", **BOUNDS),
                _scalar("boolean"),
                _scalar("null"),
                _compound("array", items=NODE, minItems=COUNT, maxItems=COUNT),
                OBJECT,
                {
                    "type": "object",
                    "properties": {
                        "anyOf": {"type": "array", "minItems": 1, "items": NODE},
                        "description": {"type": "string"},
                    },
                    "required": ["anyOf"],
                    "additionalProperties": False,
                },
            ]
        }
    },
}
OPENAI: Final = Draft202012Validator(META)


def openai_refuses(response_format: Any) -> str | None:
    """Why OpenAI would answer 400; None where it would not. References are not known here: we send none."""
    wanted = response_format["json_schema"]
    if not re.fullmatch("[a-zA-Z0-9_-]{1,64}", wanted["name"]):
        return f"the name {wanted['name']!r}"
    if not wanted["strict"]:
        return None
    schema = wanted["schema"]
    for error in OPENAI.iter_errors(schema):
        return str(error.message)
    return next(_counts(schema), None)


def _counts(schema: dict[str, Any]) -> Iterator[str]:
    properties, values, letters = 0, 0, 0
    open_ = [(schema, 0)]
    while open_:
        node, level = open_.pop()
        names = node.get("properties", {})
        enum = [str(value) for value in node.get("enum", ())]
        if names.keys() != set(node.get("required", ())):
            yield f"required is {node.get('required')} of {sorted(names)}"
        properties += len(names)
        values += len(enum)
        letters += len("".join((*names, *enum)))
        if level > 10:
            yield "more than 10 levels"
        if len(enum) > 250 and len("".join(enum)) > 15_000:
            yield "a large enum of more than 15,000 letters"
        open_ += [(below, level + 1) for below in (*names.values(), *node.get("anyOf", ()))]
        if "items" in node:
            open_.append((node["items"], level + 1))
    if properties > 5_000 or values > 1_000 or letters > 120_000:
        yield f"{properties} properties, {values} values, {letters} letters"


def anthropic_refuses(schema: Any) -> str | None:
    """The same of Anthropic's `output_config.format.schema`."""
    open_ = [schema]
    while open_:
        node = open_.pop()
        if not {"type", "anyOf"} & node.keys():
            return f"no type: {node}"
        if odd := node.keys() & {"minimum", "maximum", "minLength", "maxLength", "pattern", "default", "oneOf", "$ref"}:
            return f"keywords: {odd}"
        if node.get("type") == "object" and node.get("additionalProperties") is not False:
            return "additionalProperties"
        open_ += [*node.get("properties", {}).values(), *node.get("anyOf", ())]
        open_ += [node["items"]] if "items" in node else []
    return None


class Provider:
    """What came: each body, by path, and each refusal."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.refusals: list[str] = []
        self.heads: list[str] = []

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.bodies.append((path, body))
        if path.endswith("/embeddings"):
            vectors = [
                {"object": "embedding", "index": index, "embedding": embedding(text, 1536)}
                for index, text in enumerate(body["input"])
            ]
            return 200, {"object": "list", "data": vectors, "usage": {"prompt_tokens": 3, "total_tokens": 3}}
        if path.endswith("/messages"):
            schema = body.get("output_config", {}).get("format", {}).get("schema")
            refusal = schema and anthropic_refuses(schema)
        else:
            format_ = body.get("response_format")
            schema = format_ and format_["json_schema"]["schema"]
            refusal = format_ and openai_refuses(format_)
        if refusal:
            self.refusals.append(refusal)
            return 400, {"error": {"message": f"Invalid schema: {refusal}", "type": "invalid_request_error"}}
        text = reply(schema, seed(path)) if schema else "Thank you for your message."
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        return 200, {
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "content": [{"type": "text", "text": text}],
            "stop_reason": "end_turn",
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "input_tokens": 7, "output_tokens": 3},
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.heads.append(head.decode("latin-1"))
                (length,) = re.findall(rb"content-length: *(\d+)", head.lower())
                body = json.loads(await reader.readexactly(int(length)))
                status, told = self.answer(head.split()[1].decode(), body)
                writer.write(_streamed(told) if body.get("stream") and status == 200 else _plain(status, told))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def _plain(status: int, told: dict[str, Any]) -> bytes:
    content = json.dumps(told).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


def _streamed(told: dict[str, Any]) -> bytes:
    """A chat completion as OpenAI streams it; Anthropic is not streamed to in these tests."""
    text = told["choices"][0]["message"]["content"]
    parts = [{"delta": {"content": text}, "finish_reason": None}, {"delta": {}, "finish_reason": "stop"}]
    chunks = [json.dumps({"choices": [part]}) for part in parts]
    chunks += [json.dumps({"choices": [], "usage": told["usage"]}), "[DONE]"]
    content = "".join(f"data: {chunk}\n\n" for chunk in chunks).encode()
    head = f"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


@asynccontextmanager
async def strict_provider() -> AsyncIterator[tuple[str, Provider]]:
    """Its address, and what came."""
    provider = Provider()
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", provider
