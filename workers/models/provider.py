"""What every LLM provider looks like from here: a request, an answer, a client that turns one into the other."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Final, Literal, Protocol, runtime_checkable

from msgspec import Struct

from workers.models.streaming import OnText, StreamTimeouts

SIMULATED_KEY: Final = "simulated"
# A client reads so many bytes of an answer: more than any answer within the request's limits has. A token is a word
# or less, and JSON may write each letter as \uXXXX; a vector has 4,096 numbers of up to 32 characters.
ANSWER_BYTES: Final = 1 << 20
TOKEN_BYTES: Final = 256
VECTOR_BYTES: Final = 1 << 17


class Message(Struct, frozen=True):
    role: Literal["user", "assistant"]
    content: str


class Schema(Struct, frozen=True):
    """The JSON Schema a reply has to follow.

    `name` fits `^[a-zA-Z0-9_-]{1,64}$`; `strict`: whether the schema is within the limits of OpenAI's strict mode.
    """

    name: str
    body: dict[str, Any]
    strict: bool = True


class Request(Struct, frozen=True):
    model: str
    system: str | None
    messages: tuple[Message, ...]
    schema: Schema | None
    max_tokens: int
    temperature: float | None
    headers: dict[str, str]

    @property
    def answer_max(self) -> int:
        return ANSWER_BYTES + self.max_tokens * TOKEN_BYTES


class Texts(Struct, frozen=True):
    """Texts to be made vectors of."""

    model: str
    texts: tuple[str, ...]
    headers: dict[str, str]
    max_tokens: ClassVar[int] = 0

    @property
    def answer_max(self) -> int:
        return ANSWER_BYTES + len(self.texts) * VECTOR_BYTES


class Answer(Struct, frozen=True):
    """A reply that has ended; `stop` says why. `vectors`: those of Texts, in that order."""

    text: str | None
    stop: Literal["end", "length", "refused"]
    tokens_in: int
    tokens_out: int
    simulated: bool
    vectors: list[list[float]] | None = None


class Client(Protocol):
    async def complete(self, request: Request, timeout_s: float) -> Answer:
        """Ask once. Raises Fault."""

    async def stream(self, request: Request, timeouts: StreamTimeouts, on_text: OnText) -> Answer:
        """Ask once, and tell the text as it comes: of a reply that ends well, all of it. Raises Fault."""


@runtime_checkable
class Embedder(Protocol):
    """What a client also is where its provider has embeddings."""

    async def embed(self, request: Texts, timeout_s: float) -> Answer:
        """Ask once, for `vectors`. Raises Fault."""


Connect = Callable[[Mapping[str, str], str | None], AbstractAsyncContextManager[Client]]
"""Opens a provider's client with the values of its KEYS and OPTIONS, or at the simulator's address."""


class Provider(Struct, frozen=True):
    """A file of workers/providers/: `keys` are the variables that it can't be asked without."""

    connect: Connect
    keys: tuple[str, ...] = ()

    def has_keys(self, values: Mapping[str, str]) -> bool:
        return all(values.get(name) for name in self.keys)
