"""What a step says is checked when it says it, by the rules of the door."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any

import pytest
from msgspec import Meta

from schemas import Event
from service.core.errors import Reject, WiringError
from tests.programs import event_type
from tests.workers.kit.runs import open_run, with_deps
from workers.kit import Run
from workers.kit.emit import EMIT_BYTES_MAX, EMIT_MAX
from workers.kit.run import as_step


class Said(Event, tag="said", frozen=True):
    text: Annotated[str, Meta(max_length=5_000_000)] = ""
    stars: Annotated[int, Meta(ge=1)] = 1
    more: Any = None


class Unknown(Event, tag="unknown", frozen=True):
    pass


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


REFUSED: dict[str, tuple[Callable[[Run], None], str]] = {
    "a type that is none": (lambda run: run.emit(Unknown()), 'emits "unknown", which is not in schemas/events/'),
    "a field out of bounds": (lambda run: run.emit(Said(stars=0)), "Expected `int` >= 1 - at `$.stars`"),
    "what can't be encoded": (lambda run: run.emit(Said(more=object())), "which does not fit: "),
    "a NUL": (lambda run: run.emit(Said("a\0b")), "NUL"),
    "half a surrogate": (lambda run: run.emit(Said("\ud800")), "surrogates not allowed"),
    "too deep": (lambda run: run.emit(Said(more=nested(70))), "nested deeper than 64 levels"),
    "more than a body may have": (lambda run: run.emit(Said("x" * 1_048_577)), "CALLBOARD_BODY_MAX is 1048576"),
    "an empty key": (lambda run: run.emit(Said(), key=""), "with a key of 0 characters"),
    "a long key": (lambda run: run.emit(Said(), key="k" * 201), "with a key of 201 characters"),
    "a NUL in the key": (lambda run: run.emit(Said(), key="a\0"), "NUL"),
    "a time without a zone": (lambda run: run.emit(Said(), due_at=datetime(2030, 1, 1)), "that has no time zone"),  # noqa: DTZ001
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_the_door_would_not_take_is_refused_and_names_the_step(name: str) -> None:
    say, told = REFUSED[name]
    async with open_run() as opened:
        run = as_step(with_deps(opened, catalog={"said": event_type(Said)}), "answer/tell")
        with pytest.raises(Reject) as refused:
            say(run)
        assert str(refused.value).startswith("answer/tell emits ")
        assert told in str(refused.value)
        assert run._effects.children == []


async def test_it_is_said_in_a_step_only() -> None:
    async with open_run() as run:
        with pytest.raises(WiringError, match=r"emit while a node runs, in the free form by `await run\.step"):
            run.emit(Said())
        own = as_step(run, "tell")
        own._effects.over = True  # the node has returned, and left something running
        with pytest.raises(WiringError, match="emit while a node runs"):
            own.emit(Said())


@pytest.mark.parametrize(("size", "times"), [(1, EMIT_MAX), (1_000_000, EMIT_BYTES_MAX // 1_000_000)])
async def test_an_event_says_so_much_and_no_more(size: int, times: int) -> None:
    async with open_run() as opened:
        whole = with_deps(opened, catalog={"said": event_type(Said)})
        for n in range(times):
            as_step(whole, f"step {n}").emit(Said("x" * size))
        with pytest.raises(Reject, match=f"one event may emit {EMIT_MAX} events of {EMIT_BYTES_MAX} bytes in all"):
            as_step(whole, "last").emit(Said("x" * size))
