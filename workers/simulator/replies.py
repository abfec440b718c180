"""What the simulated model says: from the JSON Schema asked for and a hash of the request, always the same."""

import hashlib
import math
from random import Random
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from workers.simulator.schemas import TEXT, value

LETTERS_PER_TOKEN: Final = 4
EMBEDDING_DIMENSIONS: Final = {"text-embedding-3-large": 3072}
EMBEDDING_DIMENSIONS_ELSE: Final = 1536
Stop = Literal["end", "length", "refused"]
REFUSAL: Final = "(simulated) I can't help with that."


class Chat(Struct, frozen=True):
    """What both protocols ask for, as far as the reply depends on it."""

    messages: list[Any]
    model: str = ""
    system: Any = None
    response_format: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None

    @property
    def schema(self) -> dict[str, Any] | None:
        format_ = self.response_format or {}
        format_asked = format_.get("json_schema") or (self.output_config or {}).get("format") or format_
        schema = format_asked.get("schema") if isinstance(format_asked, dict) else None
        return schema if isinstance(schema, dict) else None

    @property
    def tokens_max(self) -> float:
        return self.max_completion_tokens or self.max_tokens or math.inf


class Texts(Struct, frozen=True):
    input: str | list[str]
    model: str = ""
    dimensions: Annotated[int, Meta(ge=1, le=4096)] | None = None
    encoding_format: str = "float"

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class Reply(Struct, frozen=True):
    text: str
    stop: Stop
    tokens_in: int
    tokens_out: int


def seed(*parts: object) -> Random:
    """A random generator that is the same for the same request, in any process."""
    return Random(hashlib.sha256(msgspec.json.encode(parts)).digest())


def tokens(text: str | bytes) -> int:
    """About what a provider would count."""
    return max(1, math.ceil(len(text) / LETTERS_PER_TOKEN))


def pieces(text: str) -> list[str]:
    """As a stream brings it: a token each."""
    return [text[at : at + LETTERS_PER_TOKEN] for at in range(0, len(text), LETTERS_PER_TOKEN)]


def answer(chat: Chat, twist: str, seeded: int) -> Reply:
    """The whole reply; the `twist` of a fault makes it a refusal, one that is cut off, or one that does not fit."""
    content = (chat.model, chat.system, chat.messages, chat.schema)
    text = REFUSAL if twist == "refusal" else reply(chat.schema, seed(*content, *([seeded] if seeded else [])))
    if twist == "invalid" and chat.schema:
        text = msgspec.json.encode([{"simulated": "this does not fit the schema"}]).decode()
    room = int(min(len(text) // 2 if twist == "length" else len(text), chat.tokens_max * LETTERS_PER_TOKEN))
    # A model makes prose as long as there is room; JSON breaks off.
    stop = _stop(twist, cut=twist == "length" or (room < len(text) and chat.schema is not None))
    return Reply(text[:room], stop, tokens(msgspec.json.encode(content)), tokens(text[:room]))


def _stop(twist: str, *, cut: bool) -> Stop:
    return "refused" if twist == "refusal" else "length" if cut else "end"


def reply(schema: dict[str, Any] | None, random: Random) -> str:
    if schema is None:
        return f"(simulated) {TEXT}"
    return msgspec.json.encode(value(schema, random)).decode()


def dimensions_of(texts: Texts) -> int:
    return texts.dimensions or EMBEDDING_DIMENSIONS.get(texts.model, EMBEDDING_DIMENSIONS_ELSE)


def embedding(text: str, dimensions: int) -> list[float]:
    """A unit vector by signed hashing of words: texts that share words are near each other."""
    vector = [0.0] * dimensions
    for word in text.casefold().split() or [""]:
        number = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
        vector[number % dimensions] += 1.0 if number >> 63 else -1.0
    norm = math.hypot(*vector)
    return [number / norm for number in vector] if norm else [1.0, *vector[1:]]
