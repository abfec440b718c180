"""What the providers' protocols say of a reply: OpenAI's, which is Azure's too, and Anthropic's."""

import base64
from array import array
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from msgspec import Struct

from workers.simulator.limits import Left
from workers.simulator.replies import Chat, Reply, Texts, answer, dimensions_of, embedding, pieces, tokens
from workers.simulator.strict import check_anthropic, check_openai


class Said(Struct, frozen=True):
    """A body, or the events of a stream, and what it counts as."""

    tokens_in: int
    tokens_out: int
    body: dict[str, Any] | None = None
    events: tuple[bytes, ...] = ()


class Dialect(Struct, frozen=True):
    request_type: type[Chat] | type[Texts]
    speak: Callable[[Any, str, int], Said]
    """From what is asked, the twist of a fault, and the simulator's seed."""
    error: Callable[[int, str], dict[str, Any]]
    no_credit: tuple[int, dict[str, Any]]
    error_event: bytes
    left: Callable[[Left], dict[str, str]]


def _event(data: object, name: str = "") -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + (data if isinstance(data, bytes) else msgspec.json.encode(data)) + b"\n\n"


def _openai_chat(request: Chat, twist: str, seeded: int) -> Said:
    check_openai(request.response_format)
    reply = answer(request, twist, seeded)
    if request.stream:
        return Said(reply.tokens_in, reply.tokens_out, events=tuple(_chunks(request, reply)))
    message = {"role": "assistant", "content": None, "refusal": None, **_words(reply, reply.text)}
    choice = {"index": 0, "message": message, "finish_reason": _finish(reply), "logprobs": None}
    head = _openai_head(request, "chat.completion")
    return Said(reply.tokens_in, reply.tokens_out, {**head, "choices": [choice], "usage": _openai_usage(reply)})


def _chunks(request: Chat, reply: Reply) -> Iterator[bytes]:
    # Mistral says it unasked, at the same path.
    with_usage = (request.stream_options or {}).get("include_usage") or request.model.startswith("mistral")
    head = _openai_head(request, "chat.completion.chunk") | ({"usage": None} if with_usage else {})
    deltas = [{"role": "assistant", "content": ""}, *(_words(reply, piece) for piece in pieces(reply.text)), {}]
    for number, delta in enumerate(deltas, 1):
        finish = _finish(reply) if number == len(deltas) else None
        yield _event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]})
    if with_usage:
        yield _event({**head, "choices": [], "usage": _openai_usage(reply)})
    yield _event(b"[DONE]")


def _openai_head(request: Chat, kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-simulated", "object": kind, "created": 0, "model": request.model}


def _words(reply: Reply, text: str) -> dict[str, str]:
    return {"refusal" if reply.stop == "refused" else "content": text}


def _finish(reply: Reply) -> str:
    return "length" if reply.stop == "length" else "stop"


def _openai_usage(reply: Reply) -> dict[str, int]:
    total = reply.tokens_in + reply.tokens_out
    return {"prompt_tokens": reply.tokens_in, "completion_tokens": reply.tokens_out, "total_tokens": total}


def _openai_embeddings(request: Texts, twist: str, seeded: int) -> Said:
    data = []
    for index, text in enumerate(request.texts):
        vector: Any = embedding(text, dimensions_of(request))
        if request.encoding_format == "base64":
            vector = base64.b64encode(array("f", vector).tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens_in = sum(map(tokens, request.texts))
    usage = {"prompt_tokens": tokens_in, "total_tokens": tokens_in}
    return Said(tokens_in, 0, {"object": "list", "model": request.model, "data": data, "usage": usage})


def _openai_error(status: int, message: str) -> dict[str, Any]:
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    codes = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": codes.get(status)}}


def _openai_left(left: Left) -> dict[str, str]:
    facts = {"limit": str(left.limit), "remaining": str(left.left), "reset": f"{left.reset_s:.3f}s"}
    return {f"x-ratelimit-{name}-{left.what}": fact for name, fact in facts.items()}


STOPS: Final = {"end": "end_turn", "length": "max_tokens", "refused": "refusal"}
TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def _anthropic_message(request: Chat, twist: str, seeded: int) -> Said:
    check_anthropic(request.output_config)
    reply = answer(request, twist, seeded)
    if request.stream:
        return Said(reply.tokens_in, reply.tokens_out, events=tuple(_events(request, reply)))
    usage = {"input_tokens": reply.tokens_in, "output_tokens": reply.tokens_out}
    end = {"stop_reason": STOPS[reply.stop], "usage": usage, "content": [{"type": "text", "text": reply.text}]}
    return Said(reply.tokens_in, reply.tokens_out, {**_anthropic_head(request), **end})


def _events(request: Chat, reply: Reply) -> Iterator[bytes]:
    def event(kind: str, **more: Any) -> bytes:
        return _event({"type": kind, **more}, kind)

    usage = {"input_tokens": reply.tokens_in, "output_tokens": 1}
    yield event("message_start", message={**_anthropic_head(request), "usage": usage})
    yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    yield event("ping")
    for piece in pieces(reply.text):
        yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
    yield event("content_block_stop", index=0)
    end = {"stop_reason": STOPS[reply.stop], "stop_sequence": None}
    yield event("message_delta", delta=end, usage={"output_tokens": reply.tokens_out})
    yield event("message_stop")


def _anthropic_head(request: Chat) -> dict[str, Any]:
    head = {"id": "msg_simulated", "type": "message", "role": "assistant", "model": request.model}
    return {**head, "content": [], "stop_reason": None, "stop_sequence": None}


def _anthropic_error(status: int, message: str) -> dict[str, Any]:
    kind = TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def _anthropic_left(left: Left) -> dict[str, str]:
    reset = (datetime.now(UTC) + timedelta(seconds=left.reset_s)).isoformat(timespec="seconds").replace("+00:00", "Z")
    facts = {"limit": str(left.limit), "remaining": str(left.left), "reset": reset}
    return {f"anthropic-ratelimit-{left.what}-{name}": fact for name, fact in facts.items()}


SPENT: Final = {
    "message": "You exceeded your current quota (simulated).",
    "param": None,
    "type": "insufficient_quota",
    "code": "insufficient_quota",
}
OPENAI_CHAT: Final = Dialect(
    request_type=Chat,
    speak=_openai_chat,
    error=_openai_error,
    no_credit=(429, {"error": SPENT}),
    error_event=_event(_openai_error(500, "The server had an error (simulated).")),
    left=_openai_left,
)
OPENAI_EMBEDDINGS: Final = msgspec.structs.replace(OPENAI_CHAT, request_type=Texts, speak=_openai_embeddings)
ANTHROPIC: Final = Dialect(
    request_type=Chat,
    speak=_anthropic_message,
    error=_anthropic_error,
    no_credit=(400, _anthropic_error(400, "Your credit balance is too low (simulated).")),
    error_event=_event(_anthropic_error(529, "Overloaded (simulated)."), "error"),
    left=_anthropic_left,
)
AZURE: Final = "/openai/deployments/{model}"
DIALECTS: Final = {
    "/v1/chat/completions": OPENAI_CHAT,
    f"{AZURE}/chat/completions": OPENAI_CHAT,
    "/v1/embeddings": OPENAI_EMBEDDINGS,
    f"{AZURE}/embeddings": OPENAI_EMBEDDINGS,
    "/v1/messages": ANTHROPIC,
}
