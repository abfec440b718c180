"""An event's data are let go with its end, whatever timers and contexts remain: memory holds what is in hand."""

import gc
import sys

from schemas import Event
from service.core.errors import Reject
from service.core.settings import Settings
from tests.board import board_on
from tests.programs import program_of
from workers.engine.claim import Claimed
from workers.kit import Pipeline


class Large(Event, tag="large", frozen=True):
    text: str
    refused: bool


async def read(event: Large) -> int:
    if event.refused:
        raise Reject("not this one")
    return len(event.text)


async def test_ended_events_are_let_go_without_a_garbage_collection(settings: Settings) -> None:
    async with board_on(settings, program_of(settings, large=Pipeline(on=Large, flow=[read]))) as board:
        gc.collect()
        gc.disable()
        try:
            for refused in (False, True) * 4:
                await board.ended(await board.send("large", {"text": "x" * 1000, "refused": refused}))
            held = [value for value in gc.get_objects() if isinstance(value, Claimed) and value.type == "large"]
            assert len(held) <= 1, [sys.getrefcount(each) for each in held]  # the last may be in hand for a moment yet
        finally:
            gc.enable()
