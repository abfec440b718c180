"""Wrong use of the kit: dead at once, reason `wiring`, replayable after the mend; a TypeError of one's own is not."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec import Struct

from schemas import Event
from service.core.settings import Settings
from tests.board import board_on
from tests.programs import program_of
from workers.kit import Pipeline, Retry, Run, parallel, pipeline

QUICK = Retry(attempts=2, base_s=0.05, cap_s=0.1)


class Poked(Event, tag="poked", frozen=True):
    how: str


class Note(Struct, frozen=True):
    text: str


async def tell(run: Run, note: Note) -> str:
    return note.text


async def no_return(run: Run):  # type: ignore[no-untyped-def]
    return None


def not_async(note: Note) -> str:
    return note.text


async def own_bug(note: Note) -> Any:
    raise TypeError("mine")


async def broken() -> str:
    return str("a" + 1)  # type: ignore[operator]


NAME = "tickets/classify"
WRONG: dict[str, Callable[[Any, Poked], Awaitable[Any]]] = {
    'No prompt "tickets/clasify"': lambda run, _: run.llm.ask("tickets/clasify", returns=str),
    "wants ticket": lambda run, _: run.llm.ask(NAME, returns=str),
    "declares no tone": lambda run, event: run.llm.ask(NAME, returns=str, ticket=event, tone=1),
    "can't be rendered": lambda run, event: run.llm.ask(NAME, returns=str, ticket=event),
    'No model alias "fest"': lambda run, event: run.llm.ask(NAME, returns=str, ticket=event, model="fest"),
    "A reply is a str or": lambda run, event: run.llm.ask(NAME, returns=dict, ticket=event),
    "No model alias": lambda run, _: run.llm.embed(["text"], model="no_alias"),
    "names no resource": lambda run, _: run.resource(Note),
    "names no document": lambda run, _: run.vectors.delete("tickets"),
    "gives a `source` in its metadata": lambda run, _: claim(run),
}


async def claim(run: Run) -> None:
    """That somebody else wrote it, whom searches trust."""
    run.vectors.upsert("examples", "1", "text", {"source": "/seed"})


async def use(run: Run, event: Poked) -> None:
    await WRONG[event.how](run, event)


STEPS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "missing a required argument: 'note'": lambda run: run.step(tell),
    "too many positional": lambda run: run.step(tell, Note("x"), 2),
    "does not say what it returns": lambda run: run.step(no_return),
    "is no async function": lambda run: run.step(not_async, Note("x")),
    "can't be part of the step's key": lambda run: run.step(tell, object()),
}


@pipeline(on=Poked, retry=QUICK)
async def free(run: Run, event: Poked) -> None:
    await STEPS[event.how](run)


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("flow", [[use], [parallel(use, collect=True)]], ids=["alone", "collected"])
async def test_it_is_dead_at_once(how: str, flow: list[Any], settings: Settings) -> None:
    async with board_on(settings, program_of(settings, poked=Pipeline(on=Poked, flow=flow, retry=QUICK))) as board:
        event = await board.ended(await board.send("poked", {"how": how}))
        assert (event["status"], event["attempts"], event["error"]["kind"]) == ("dead", 1, "WiringError")
        assert how in event["error"]["message"]
        assert event["error"]["step"] == "use"
        (letter,) = (await board.http.get("/dead-letters", params={"reason": "wiring"})).json()["items"]
        assert letter["event_id"] == event["event_id"]


async def test_so_is_a_step_that_can_not_be_called_and_after_the_mend_it_is_replayed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with board_on(settings, program_of(settings, poked=free)) as board:
        sent = {how: await board.send("poked", {"how": how}) for how in STEPS}
        for how, event_id in sent.items():
            event = await board.ended(event_id)
            assert (event["status"], event["attempts"], event["error"]["kind"]) == ("dead", 1, "WiringError"), how
            assert how in event["error"]["message"]
        for how in STEPS:
            monkeypatch.setitem(STEPS, how, lambda run: run.step(tell, Note("mended")))
        body = (await board.http.post("/dead-letters/replay", json={"reason": "wiring"})).json()
        assert body == {"matched": len(STEPS), "done": len(STEPS)}
        for event_id in sent.values():
            assert (await board.ended(event_id))["status"] == "succeeded"


@pytest.mark.parametrize("step", [lambda run: run.step(own_bug, Note("x")), lambda run: run.step(broken)])
async def test_a_type_error_of_the_users_own_is_an_attempt(
    step: Callable[[Any], Awaitable[Any]], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STEPS, "own", step)
    async with board_on(settings, program_of(settings, poked=free)) as board:
        event = await board.ended(await board.send("poked", {"how": "own"}))
        assert (event["status"], event["attempts"], event["error"]["kind"]) == ("dead", 2, "TypeError")
