"""OpenAI's protocol, Azure's too: chat completions and embeddings."""

import base64
from array import array
from collections.abc import Iterator
from typing import Any, Final

from workers.simulator.dialect import Dialect, Said, event
from workers.simulator.limits import Left
from workers.simulator.replies import Chat, Reply, Texts, answer, dimensions_of, embedding, pieces, tokens

STOPS: Final = {"end": "stop", "length": "length", "refused": "stop"}
TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES: Final = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


def chat(asked: Chat, twist: str, seeded: int) -> Said:
    reply = answer(asked, twist, seeded)
    if asked.stream:
        return Said(reply.tokens_in, reply.tokens_out, events=tuple(_chunks(asked, reply)))
    message = {"role": "assistant", "content": None, "refusal": None, **_words(reply, reply.text)}
    choice = {"index": 0, "message": message, "finish_reason": STOPS[reply.stop], "logprobs": None}
    head = _head(asked, "chat.completion")
    return Said(reply.tokens_in, reply.tokens_out, {**head, "choices": [choice], "usage": _usage(reply)})


def embeddings(asked: Texts, twist: str, seeded: int) -> Said:
    vectors = [embedding(text, dimensions_of(asked)) for text in asked.texts]
    as_base64 = asked.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if as_base64 else vector}
        for index, vector in enumerate(vectors)
    ]
    tokens_in = sum(map(tokens, asked.texts))
    usage = {"prompt_tokens": tokens_in, "total_tokens": tokens_in}
    return Said(tokens_in, 0, {"object": "list", "model": asked.model, "data": data, "usage": usage})


def error(status: int, message: str) -> dict[str, Any]:
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": CODES.get(status)}}


def left(told: Left) -> dict[str, str]:
    facts = {"limit": str(told.limit), "remaining": str(told.left), "reset": f"{told.reset_s:.3f}s"}
    return {f"x-ratelimit-{name}-{told.what}": fact for name, fact in facts.items()}


def dialect_of(asked: type[Chat] | type[Texts]) -> Dialect:
    spent = {"message": "You exceeded your current quota (simulated).", "param": None}
    return Dialect(
        asked=asked,
        speak=chat if asked is Chat else embeddings,
        error=error,
        no_credit=(429, {"error": {**spent, "type": "insufficient_quota", "code": "insufficient_quota"}}),
        error_event=event(error(500, "The server had an error (simulated).")),
        left=left,
    )


def _head(asked: Chat, kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-simulated", "object": kind, "created": 0, "model": asked.model}


def _words(reply: Reply, text: str) -> dict[str, str]:
    return {"refusal" if reply.stop == "refused" else "content": text}


def _usage(reply: Reply) -> dict[str, int]:
    total = reply.tokens_in + reply.tokens_out
    return {"prompt_tokens": reply.tokens_in, "completion_tokens": reply.tokens_out, "total_tokens": total}


def _chunks(asked: Chat, reply: Reply) -> Iterator[bytes]:
    # Mistral says it unasked, at the same path.
    told = (asked.stream_options or {}).get("include_usage") or asked.model.startswith("mistral")
    head = _head(asked, "chat.completion.chunk") | ({"usage": None} if told else {})
    deltas = [{"role": "assistant", "content": ""}, *(_words(reply, piece) for piece in pieces(reply.text)), {}]
    for place, delta in enumerate(deltas, 1):
        finish = STOPS[reply.stop] if place == len(deltas) else None
        yield event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]})
    if told:
        yield event({**head, "choices": [], "usage": _usage(reply)})
    yield event(b"[DONE]")


def _base64(vector: list[float]) -> str:
    return base64.b64encode(array("f", vector).tobytes()).decode()
