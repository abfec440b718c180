"""Random flows are bound as a reader of the rule would bind them: look back, take the first that fits."""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from schemas import Event
from service.core.errors import WiringError
from workers.compiler.binding import bind
from workers.compiler.plan import EVENT, BoundNode, BoundParallel, Plan, Takes
from workers.kit import parallel
from workers.kit.flow import Element


class Said(Event, tag="said", frozen=True):
    pass


class Base(Struct, frozen=True):
    pass


class One(Base, frozen=True):
    pass


class Two(Base, frozen=True):
    pass


class OneMore(One, frozen=True):
    pass


class Other(Struct, frozen=True):
    pass


class Drawn(Struct, frozen=True):
    """A node to be: what it takes and what it gives."""

    takes: tuple[type, ...]
    gives: type


Layers = Sequence[Sequence[Drawn]]  # several in a layer stand in one `parallel`

TYPES = st.sampled_from((Base, One, Two, OneMore, Other))
NODES = st.builds(Drawn, st.lists(st.one_of(TYPES, st.just(Said)), max_size=2).map(tuple), TYPES)
FLOWS = st.lists(st.lists(NODES, min_size=1, max_size=3), min_size=1, max_size=6)


def expected(layers: Layers) -> dict[str, tuple[str, ...]] | None:
    """Node → the names of what it takes; None where a parameter has no producer, or two side by side."""
    behind: list[list[tuple[str, type]]] = [[(EVENT, Said)]]
    bound: dict[str, tuple[str, ...]] = {}
    for level, layer in enumerate(layers):
        for index, drawn in enumerate(layer):
            found = [look_back(behind, wanted) for wanted in drawn.takes]
            if any(len(each) != 1 for each in found):
                return None
            bound[f"n{level}_{index}"] = tuple(each[0] for each in found)
        behind.append([(f"n{level}_{index}", drawn.gives) for index, drawn in enumerate(layer)])
    return bound


def look_back(behind: list[list[tuple[str, type]]], wanted: type) -> list[str]:
    for layer in reversed(behind):
        if fitting := [name for name, gives in layer if issubclass(gives, wanted)]:
            return fitting
    return []


def node(name: str, drawn: Drawn) -> Callable[..., Awaitable[Any]]:
    async def made(*arguments: object) -> object:
        return drawn.gives()

    names = [f"p{index}" for index in range(len(drawn.takes))]
    plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter(each, plain, annotation=kind) for each, kind in zip(names, drawn.takes, strict=True)
    ]
    made.__name__ = name
    made.__annotations__ = {**dict(zip(names, drawn.takes, strict=True)), "return": drawn.gives}
    made.__signature__ = inspect.Signature(parameters, return_annotation=drawn.gives)  # type: ignore[attr-defined]
    return made


def flow(layers: Layers) -> list[Element]:
    made = [[node(f"n{level}_{index}", each) for index, each in enumerate(layer)] for level, layer in enumerate(layers)]
    return [layer[0] if len(layer) == 1 else parallel(*layer) for layer in made]


def takes(plan: Plan) -> dict[str, Takes]:
    members = [each for part in plan for each in (chain(*part.members) if isinstance(part, BoundParallel) else [part])]
    return {member.step_key: member.takes for member in members if isinstance(member, BoundNode)}


@settings(max_examples=300, deadline=None)
@given(FLOWS)
@example([[Drawn((), One), Drawn((), Two)], [Drawn((Base,), Other)]])
@example([[Drawn((), One), Drawn((), Two)], [Drawn((), OneMore)], [Drawn((Base, Two), Other)]])
def test_every_parameter_is_bound_to_the_nearest_producer_upstream(layers: Layers) -> None:
    wanted = expected(layers)
    if wanted is None:
        with pytest.raises(WiringError, match=r"n\d_\d: .*parameter `p\d: "):
            bind(flow(layers), Said)
    else:
        assert takes(bind(flow(layers), Said)) == wanted
