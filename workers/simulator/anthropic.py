"""Anthropic's protocol: messages."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from workers.simulator.dialect import Dialect, Said, event
from workers.simulator.limits import Left
from workers.simulator.replies import Chat, Reply, answer, pieces

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


def message(asked: Chat, twist: str, seeded: int) -> Said:
    reply = answer(asked, twist, seeded)
    if asked.stream:
        return Said(reply.tokens_in, reply.tokens_out, events=tuple(_events(asked, reply)))
    end = {"stop_reason": STOPS[reply.stop], "usage": _usage(reply.tokens_in, reply.tokens_out)}
    body = {**_head(asked), **end, "content": [{"type": "text", "text": reply.text}]}
    return Said(reply.tokens_in, reply.tokens_out, body)


def error(status: int, message: str) -> dict[str, Any]:
    kind = TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def left(told: Left) -> dict[str, str]:
    reset = (datetime.now(UTC) + timedelta(seconds=told.reset_s)).isoformat(timespec="seconds").replace("+00:00", "Z")
    facts = {"limit": str(told.limit), "remaining": str(told.left), "reset": reset}
    return {f"anthropic-ratelimit-{told.what}-{name}": fact for name, fact in facts.items()}


def dialect() -> Dialect:
    return Dialect(
        asked=Chat,
        speak=message,
        error=error,
        no_credit=(400, error(400, "Your credit balance is too low (simulated).")),
        error_event=event(error(529, "Overloaded (simulated)."), "error"),
        left=left,
    )


def _head(asked: Chat) -> dict[str, Any]:
    head = {"id": "msg_simulated", "type": "message", "role": "assistant", "model": asked.model}
    return {**head, "content": [], "stop_reason": None, "stop_sequence": None}


def _usage(tokens_in: int, tokens_out: int) -> dict[str, int]:
    return {"input_tokens": tokens_in, "output_tokens": tokens_out}


def _events(asked: Chat, reply: Reply) -> Iterator[bytes]:
    def said(kind: str, **more: Any) -> bytes:
        return event({"type": kind, **more}, kind)

    yield said("message_start", message={**_head(asked), "usage": _usage(reply.tokens_in, 1)})
    yield said("content_block_start", index=0, content_block={"type": "text", "text": ""})
    yield said("ping")
    for piece in pieces(reply.text):
        yield said("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
    yield said("content_block_stop", index=0)
    end = {"stop_reason": STOPS[reply.stop], "stop_sequence": None}
    yield said("message_delta", delta=end, usage={"output_tokens": reply.tokens_out})
    yield said("message_stop")
