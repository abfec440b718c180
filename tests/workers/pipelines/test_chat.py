"""The conversation actor: what it remembers, of whom, and how much."""

from typing import Any, Final

from service.core.settings import Settings
from tests.board import Board, board_on
from tests.eventually import eventually
from tests.models import told_by
from workers.nodes.chat import TURNS_MAX

MESSAGES: Final = TURNS_MAX // 2 + 2


class Model:
    """Answers with how many requests it has had, and keeps them."""

    def __init__(self) -> None:
        self.inputs: Final[list[str]] = []

    def say(self, told: str) -> Any:
        self.inputs.append(told)
        return {"text": f"answer {len(self.inputs)}."}


async def test_a_conversation_is_remembered_by_its_key_and_bounded(settings: Settings) -> None:
    model = Model()
    async with told_by(model.say, settings) as told, board_on(told) as board:
        said = [
            await board.send("message.received", {"text": f"message {n}."}, partitionkey="a")
            for n in range(1, MESSAGES + 1)
        ]
        ends = [await board.ended(each, 60) for each in said]
        other = await board.ended(await board.send("message.received", {"text": "Hello."}, partitionkey="b"))
        actor = (await board.http.get("/actors/a")).json()
    assert [each["result"]["text"] for each in ends] == [f"answer {n}." for n in range(1, MESSAGES + 1)]
    assert "message 1." in model.inputs[1]
    assert "answer 1." in model.inputs[1]
    assert "message 1." not in model.inputs[MESSAGES - 1], "the oldest are let go of"
    assert f"answer {MESSAGES - 1}." in model.inputs[MESSAGES - 1]
    assert other["status"] == "succeeded"
    assert "<before>" not in model.inputs[MESSAGES]
    turns = actor["states"]["Conversation"]["turns"]
    assert len(turns) == TURNS_MAX
    assert turns[-1] == {"who": "us", "text": f"answer {MESSAGES}."}


async def test_without_a_key_there_is_nobody_to_remember(board: Board) -> None:
    async def refused() -> bool:
        """The door knows it a moment after the workers do."""
        answer = await board.post("message.received", {"text": "Hello."})
        return answer.status_code == 422 and "partitionkey" in answer.text

    assert await eventually(refused)
