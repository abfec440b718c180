"""Conversations: an actor for each, that remembers what was said last."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from schemas.events.chat import MessageReceived
from workers.kit import Run, State

TURNS_MAX = 20


class Turn(Struct, frozen=True):
    who: Literal["customer", "us"]
    text: str


class Conversation(Struct, frozen=True):
    """The actor's state: empty for a new key."""

    turns: list[Turn] = []


class Answer(Struct, frozen=True):
    text: Annotated[str, Meta(max_length=4_000)]


async def answer(run: Run, message: MessageReceived, conversation: State[Conversation]) -> Answer:
    """The answer and what is remembered of it are stored together, or neither is."""
    before = conversation.value.turns
    answer = await run.llm.ask("chat/answer", returns=Answer, turns=before, message=message)
    turns = [*before, Turn("customer", message.text), Turn("us", answer.text)]
    conversation.set(Conversation(turns[-TURNS_MAX:]))
    return answer
