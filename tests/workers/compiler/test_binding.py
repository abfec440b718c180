"""Parameters are bound by type, to the nearest producer upstream; what can't be is one sentence at the boot."""

import functools
from typing import Any, Literal, Optional

import pytest
from msgspec import Struct

from schemas import Event
from service.core.errors import WiringError
from workers.compiler.binding import bind
from workers.compiler.plan import EVENT, RUN, BoundNode, BoundParallel, BoundRoute, Plan, Takes
from workers.kit import Run, parallel, route
from workers.kit.flow import Flow, Route


class Asked(Event, tag="asked", frozen=True):
    text: str


class Facts(Struct, frozen=True):
    """The base of what two nodes find out."""

    text: str


class Weather(Facts, frozen=True):
    pass


class Traffic(Facts, frozen=True):
    pass


class Answer(Struct, frozen=True):
    text: str


async def weather(asked: Asked) -> Weather:
    return Weather(asked.text)


async def weather_again() -> Weather:
    return Weather("again")


async def traffic(asked: Asked) -> Traffic:
    return Traffic(asked.text)


async def answer(facts: Facts) -> Answer:
    return Answer(facts.text)


async def pick() -> Literal["a", "b"]:
    return "a"


async def anything() -> str:
    return "anything"


def taken(plan: Plan) -> dict[str, Takes]:
    """Step key → the names of what it takes, of the whole plan."""
    found: dict[str, Takes] = {}
    for part in plan:
        match part:
            case BoundNode():
                found[part.step_key] = part.takes
            case BoundParallel():
                for member in part.members:
                    found |= taken(member)
            case BoundRoute():
                found[part.router.step_key] = part.router.takes
                for branch in (*part.branches.values(), part.otherwise or ()):
                    found |= taken(branch)
    return found


def takes(flow: Flow, key: str) -> Takes:
    return taken(bind(flow, Asked))[key]


def refusal(flow: Flow) -> str:
    with pytest.raises(WiringError) as refused:
        bind(flow, Asked)
    message = str(refused.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_the_run_and_the_event_are_there_from_the_start() -> None:
    async def node(run: Run, asked: Asked, event: Event) -> None: ...

    assert takes([node], "node") == (RUN, EVENT, EVENT)


def test_the_nearest_producer_upstream_wins() -> None:
    async def take(found: Weather) -> None: ...

    assert takes([weather, weather_again, traffic, take], "take") == ("weather_again",)
    assert takes([weather_again, weather, take], "take") == ("weather",)
    assert takes([weather, take, weather_again], "take") == ("weather",)


def test_a_node_may_take_what_one_of_its_own_type_gave() -> None:
    async def better(found: Weather) -> Weather:
        return found

    plan = taken(bind([weather, better, better, answer], Asked))
    assert plan == {"weather": (EVENT,), "better": ("weather",), "better#2": ("better",), "answer": ("better#2",)}


def test_a_base_takes_the_nearest_that_derives_from_it() -> None:
    assert takes([weather, traffic, answer], "answer") == ("traffic",)
    assert takes([traffic, weather, answer], "answer") == ("weather",)


def test_siblings_of_a_parallel_do_not_see_each_other() -> None:
    async def take(found: Weather) -> None: ...

    assert takes([weather_again, parallel(weather, take)], "take") == ("weather_again",)
    message = refusal([parallel(weather, take)])
    assert "test_binding.take: nothing upstream gives parameter `found: Weather`" in message


def test_all_members_of_a_parallel_are_in_scope_behind_it() -> None:
    async def take(one: Weather, other: Traffic) -> None: ...

    assert takes([parallel(weather, traffic), take], "take") == ("weather", "traffic")


def test_siblings_that_give_the_same_type_are_ambiguous() -> None:
    message = refusal([parallel(weather, weather_again), answer])
    assert "test_binding.answer: parameter `facts: Facts` could be what weather and weather_again give" in message
    assert "Give one of them a type of its own" in message
    assert "weather and traffic" in refusal([parallel(weather, traffic), answer])


def test_siblings_of_one_type_do_no_harm_where_nobody_asks_or_a_nearer_one_gives() -> None:
    async def take(asked: Asked) -> None: ...

    assert takes([parallel(weather, weather_again), take], "take") == (EVENT,)
    assert takes([parallel(weather, weather_again), traffic, answer], "answer") == ("traffic",)


@pytest.mark.parametrize(
    "either",
    [
        route(pick, {"a": [weather, traffic], "b": [weather_again]}),
        route(pick, {"a": [weather, traffic]}, otherwise=[weather_again]),
    ],
)
def test_what_every_branch_of_a_route_gives_is_in_scope_behind_it(either: Route) -> None:
    async def take(found: Weather) -> None: ...

    async def too_much(found: Traffic) -> None: ...

    (part, _) = bind([either, take], Asked)
    assert isinstance(part, BoundRoute)
    other = "b" if either.otherwise is None else "otherwise"
    assert part.gives == {"pick:Weather": {"a": "a/weather", other: f"{other}/weather_again"}}
    assert takes([either, take], "take") == ("pick:Weather",)
    assert "nothing upstream gives parameter `found: Traffic`" in refusal([either, too_much])


def test_what_branches_give_under_a_common_base_is_in_scope_as_that() -> None:
    (part, _) = bind([route(pick, {"a": [weather], "b": [traffic]}), answer], Asked)
    assert isinstance(part, BoundRoute)
    assert part.gives == {"pick:Facts": {"a": "a/weather", "b": "b/traffic"}}
    assert takes([route(pick, {"a": [weather], "b": [traffic]}), answer], "answer") == ("pick:Facts",)


def test_what_comes_out_of_a_route_is_nearer_than_what_went_in() -> None:
    async def take(found: Weather, label: Literal["a", "b"]) -> None: ...

    branches: dict[str, Flow] = {"a": [weather_again], "b": [weather]}
    assert takes([weather, route(pick, branches), take], "take") == ("pick:Weather", "pick")
    assert takes([weather, route(pick, {"a": [traffic], "b": []}), take], "take") == ("weather", "pick")


def test_two_siblings_of_one_type_at_the_end_of_a_branch_give_nothing_certain() -> None:
    message = refusal([route(pick, {"a": [parallel(weather, weather_again)], "b": [weather]}), answer])
    assert "nothing upstream gives parameter `facts: Facts`" in message


def test_branches_and_routes_within_branches_see_what_is_upstream() -> None:
    inner = route(pick, {"a": [answer], "b": [answer]})
    plan = taken(bind([weather, route(pick, {"a": [inner], "b": [traffic, answer]})], Asked))
    assert plan["a/a/answer"] == plan["a/b/answer"] == ("weather",)
    assert plan["b/answer"] == ("b/traffic",)

    async def take(found: Answer) -> None: ...

    assert takes([weather, route(pick, {"a": [inner], "b": [answer]}), take], "take") == ("pick:Answer",)


def test_an_optional_parameter_takes_what_may_be_there() -> None:
    async def maybe(asked: Asked) -> Weather | None:
        return None

    async def take(found: Weather | None) -> None: ...

    async def take_old_style(found: Optional[Weather]) -> None: ...  # noqa: UP045

    async def take_surely(found: Weather) -> None: ...

    assert takes([weather, take], "take") == ("weather",)
    assert takes([weather, maybe, take], "take") == ("maybe",)
    assert takes([maybe, take_old_style], "take_old_style") == ("maybe",)
    assert takes([weather, maybe, take_surely], "take_surely") == ("weather",)
    assert "`found: Weather`" in refusal([maybe, take_surely])


def test_a_node_that_gives_nothing_stands_in_nobodys_way() -> None:
    async def log(found: Weather) -> None: ...

    async def take(found: Weather | None) -> None: ...

    assert takes([weather, log, take], "take") == ("weather",)


def test_generic_types_are_bound_by_equality() -> None:
    async def many() -> list[Weather]:
        return []

    async def others() -> list[Traffic]:
        return []

    async def take(found: list[Weather]) -> None: ...

    assert takes([many, others, take], "take") == ("many",)


def test_a_missing_producer_is_named_with_what_there_is_and_what_to_do() -> None:
    message = refusal([weather, traffic, loud])
    assert "test_binding.loud: nothing upstream gives parameter `answer: Answer`" in message
    assert "There is: Asked (from the event), Weather (from weather), Traffic (from traffic)" in message
    assert "Put a node that returns Answer before it, or change the parameter's type" in message


async def loud(answer: Answer) -> str:
    return answer.text


async def no_type(found) -> None:  # type: ignore[no-untyped-def]
    ...


async def no_return(asked: Asked):  # type: ignore[no-untyped-def]
    ...


def not_async(asked: Asked) -> None: ...


async def not_there(found: "Nowhere") -> None:  # type: ignore[name-defined]  # noqa: F821
    ...


async def several(*asked: Asked) -> None: ...


async def by_name(*, asked: Asked) -> None: ...


@pytest.mark.parametrize(
    ("node", "parts"),
    [
        (no_type, ["no_type: parameter `found` has no type", "Annotate it"]),
        (no_return, ["no_return does not say what it returns", "Annotate it"]),
        (not_async, ["not_async is no async function", "async def"]),
        (not_there, ["not_there", "Nowhere", "Import the type"]),
        (several, ["several: parameter `*asked: ", "Write it plainly"]),
        (by_name, ["by_name: parameter `asked: ", "Write it plainly"]),
        (functools.partial(weather, Asked("x")), ["weather", "is no async function"]),
        ("weather", ["weather", "is no async function"]),
    ],
)
def test_what_is_no_node_is_refused_by_name(node: Any, parts: list[str]) -> None:
    for flow in ([node], [parallel(weather, node)], [route(pick, {"a": [node], "b": []})]):
        message = refusal(flow)
        assert not [part for part in parts if part not in message], message


@pytest.mark.parametrize(
    ("element", "parts"),
    [
        (route(anything, {"a": [weather]}), ["anything is a router", "Literal", "`otherwise`"]),
        (route(pick, {"a": []}), ['pick may return "b", which has no branch', "Add it, or `otherwise`"]),
        (route(pick, {"a": [], "b": [], "c": []}), ['pick never returns "c"', 'Its labels are "a", "b"']),
        (route(pick, {"a": [], "z": []}, otherwise=[]), ['pick never returns "z"']),
        (route(anything, {"otherwise": []}, otherwise=[]), ['anything: a label is called "otherwise"', "Rename it"]),
    ],
)
def test_labels_and_branches_fit(element: Any, parts: list[str]) -> None:
    message = refusal([element])
    assert not [part for part in parts if part not in message], message


def test_otherwise_makes_labels_complete() -> None:
    bind([route(pick, {"a": [weather]}, otherwise=[]), route(anything, {}, otherwise=[traffic])], Asked)
