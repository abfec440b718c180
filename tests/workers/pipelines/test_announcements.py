"""The critic loop: rounds, their bound, and what a failure in between costs."""

from typing import Any, Final

import pytest

from service.core.settings import Settings
from tests.board import Board, board_on
from tests.models import told_by
from workers.pipelines.announcements import ROUNDS

REQUEST: Final = {
    "audience": "everybody at work",
    "facts": ["The lift is out of order on Monday.", "The stairs aren't."],
}
ROLES: Final = {"draft": "You write", "criticize": "You check", "redraft": "You mend"}


class Desk:
    """A writer, and a critic who lets the n-th draft pass."""

    def __init__(self, passes: int, fails: str = "") -> None:
        self.steps: Final[list[str]] = []
        self._passes: Final = passes
        self._fails = fails

    def say(self, told: str) -> Any:
        (node,) = (name for name, words in ROLES.items() if words in told)
        if node == self._fails:
            self._fails = ""
            return None
        self.steps.append(node)
        assert REQUEST["facts"][0] in told
        drafts = len(self.steps) - self.steps.count("criticize")
        if node != "criticize":
            return {"text": f"draft {drafts}"}
        assert f"draft {drafts}" in told
        return {"sound": drafts == self._passes, "faults": [] if drafts == self._passes else [f"fault {drafts}"]}


async def announced(settings: Settings, desk: Desk) -> dict[str, Any]:
    async with told_by(desk.say, settings) as told, board_on(told) as board:
        return await board.ended(await board.send("announcement.requested", REQUEST), 30)


@pytest.mark.parametrize("passes", range(1, ROUNDS + 1))
async def test_it_goes_back_until_it_is_sound(settings: Settings, passes: int) -> None:
    desk = Desk(passes)
    event = await announced(settings, desk)
    assert event["result"] == {"text": f"draft {passes}", "rounds": passes, "faults": [], "simulated": False}
    assert desk.steps == ["draft", *["criticize", "redraft"] * (passes - 1), "criticize"]
    assert event["calls"] == len(desk.steps)


async def test_it_goes_back_so_often_and_then_to_a_person(settings: Settings) -> None:
    event = await announced(settings, Desk(ROUNDS + 1))
    assert (event["result"]["rounds"], event["result"]["faults"]) == (ROUNDS, [f"fault {ROUNDS}"])


async def test_a_failure_on_the_way_repeats_nothing(settings: Settings) -> None:
    desk = Desk(2, fails="redraft")
    event = await announced(settings, desk)
    assert (event["status"], event["attempts"], event["result"]["rounds"]) == ("succeeded", 1, 2)
    assert desk.steps == ["draft", "criticize", "redraft", "criticize"]
    assert "snoozed" in [moment["what"] for moment in event["timeline"]]


async def test_with_simulated_words_it_says_so(board: Board) -> None:
    event = await board.ended(await board.send("announcement.requested", REQUEST))
    assert (event["status"], event["result"]["simulated"]) == ("succeeded", True)
    assert 1 <= event["result"]["rounds"] <= ROUNDS
