"""Texts to vectors by a model: in batches, each a call behind the same breakers and in the same ledger as any other."""

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from prompts import Target
from service.core.errors import CallboardError
from workers.models.call import Caller
from workers.models.call_log import EMBEDDING, CallLog, Question, encode, hashed
from workers.models.errors import Fault
from workers.models.provider import Answer, Texts

T = TypeVar("T")

# Below what each provider takes at once: Gemini 100 texts, Mistral 16,384 tokens.
BATCH_TEXTS_MAX: Final = 64
BATCH_BYTES_MAX: Final = 48_000
AT_ONCE: Final = 4


class Packed(Struct, frozen=True):
    """Vectors as the ledger keeps them: float32, little-endian, one after the other."""

    dimensions: int
    float32: bytes


async def embed(
    caller: Caller,
    chain: Sequence[Target],
    request: Texts,
    call_log: Callable[[], CallLog],
    timeout_s: float,
) -> list[list[float]]:
    """A vector for each text, in that order. Raises what `Llm.ask` raises."""
    for index, text in enumerate(request.texts):
        if not text:
            raise CallboardError(f"texts[{index}] is empty, of which no model makes a vector: leave it out.")
    works: list[Callable[[], Awaitable[list[list[float]]]]] = []
    for batch in _batches(request.texts):
        # Recalled here, one after the other, so that a retry finds each reply under the same number.
        question = Question(EMBEDDING, replace(request, texts=batch), timeout_s, call_log())
        question = replace(question, question_hash=hashed(encode(question)))
        ordinal, reply = question.call_log.recall(question.question_hash)
        if reply is not None:
            question.call_log.recalled(EMBEDDING)
            works.append(partial(_stored, reply))
        else:
            works.append(partial(_answered, caller, chain, replace(question, ordinal=ordinal)))
    return [vector for vectors in await _side_by_side(works) for vector in vectors]


def pack(vectors: Sequence[Sequence[float]]) -> str:
    numbers = array("f", [number for vector in vectors for number in vector])
    if numbers.itemsize != 4:
        raise AssertionError("a float of C has 4 bytes here")
    return msgspec.json.encode(Packed(len(vectors[0]), numbers.tobytes())).decode()


def unpack(text: str) -> list[list[float]]:
    packed = msgspec.json.decode(text, type=Packed)
    numbers = array("f", packed.float32).tolist()
    return [numbers[at : at + packed.dimensions] for at in range(0, len(numbers), packed.dimensions)]


def _batches(texts: Sequence[str]) -> Iterator[tuple[str, ...]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        more = len(text.encode())
        if batch and (len(batch) == BATCH_TEXTS_MAX or size + more > BATCH_BYTES_MAX):
            yield tuple(batch)
            batch, size = [], 0
        batch.append(text)
        size += more
    if batch:
        yield tuple(batch)


async def _stored(vectors: str) -> list[list[float]]:
    return unpack(vectors)


async def _answered(caller: Caller, chain: Sequence[Target], question: Question) -> list[list[float]]:
    return await question.call_log.shield(caller.along(chain, lambda target: _ask_at(caller, target, question)))


async def _ask_at(caller: Caller, target: Target, question: Question) -> list[list[float]]:
    begun = caller.begin(question, target)

    async def send(client: Any, request: Texts) -> Answer:
        answer: Answer = await client.embed(request, question.timeout_s)
        _check(answer, len(request.texts), target.provider)
        return replace(answer, text=pack(answer.vectors or []), vectors=None)

    answer = await caller.make(begun, send)
    await caller.close(begun, answer)
    # From what is kept, so that a retry gets the same numbers, to the last bit.
    return unpack(answer.text or "")


def _check(answer: Answer, count: int, provider: str) -> None:
    vectors = answer.vectors or []
    sizes = {len(vector) for vector in vectors}
    if len(vectors) != count or len(sizes) != 1 or 0 in sizes:
        counts = f"{len(vectors)} vectors of {sorted(sizes)} dimensions for {count} texts"
        raise Fault("malformed", f"{provider} answered 200 with {counts}.")


async def _side_by_side(works: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """The first failure is raised; calls under way are finished and booked, others are not begun."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def in_turn(work: Callable[[], Awaitable[T]]) -> T:
        async with slots:
            return await work()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(in_turn(work)) for work in works]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
