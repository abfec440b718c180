"""Which pipeline runs for which event, found in a package; what does not fit together is one sentence."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

import schemas.events
import workers.pipelines
from schemas import Event
from schemas.catalog import discover
from service.core.errors import WiringError
from tests.workers.kit.packages import package
from workers.compiler import reading
from workers.compiler.binding import bind
from workers.compiler.wiring import Wiring, graph, wire
from workers.kit import Stop, each, parallel, route

EVENTS = """
    from schemas import Event

    class Asked(Event, tag="question.asked", frozen=True):
        text: str

    class Told(Event, tag="news.told", frozen=True):
        text: str
"""
PIPELINES = """
    from HERE.events import Asked, Told
    from workers.kit import Pipeline

    async def answer(asked: Asked) -> str:
        return asked.text

    async def listen(told: Told) -> None:
        return None
"""
ANSWERS = PIPELINES + "\n    answers = Pipeline(on=Asked, flow=[answer])\n"
NEWS = PIPELINES + "\n    news = Pipeline(on=Told, flow=[listen])\n"


def wired(folder: Path, files: Mapping[str, str]) -> Wiring:
    with package(folder, {"events.py": EVENTS, **files}) as found:
        return wire(found, discover(found))


def refusal(folder: Path, files: Mapping[str, str]) -> str:
    with pytest.raises(WiringError) as refused:
        wired(folder, files)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_pipeline_is_found_wherever_it_stands_and_named_by_its_variable(tmp_path: Path) -> None:
    found = wired(tmp_path, {"answers.py": ANSWERS, "deep/__init__.py": "", "deep/below/__init__.py": NEWS})
    assert {kind: (each.name, each.type) for kind, each in found.items()} == {
        "question.asked": ("answers", "question.asked"),
        "news.told": ("news", "news.told"),
    }


def test_a_pipeline_that_another_module_imports_is_one_pipeline(tmp_path: Path) -> None:
    again = "from HERE.b_answers import answers, answers as twice\n"
    assert wired(tmp_path, {"b_answers.py": ANSWERS, "c_again.py": again, "news.py": NEWS}).keys() == {
        "question.asked",
        "news.told",
    }


def test_a_name_with_an_underscore_is_no_pipeline(tmp_path: Path) -> None:
    files = {"answers.py": ANSWERS, "news.py": NEWS, "draft.py": ANSWERS.replace("answers =", "_answers =")}
    assert wired(tmp_path, files)["question.asked"].name == "answers"


def test_an_event_without_a_pipeline_is_named_with_its_place(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"answers.py": ANSWERS})
    assert 'No pipeline is on "news.told", which user_code_' in message
    assert ".events.Told declares. Add one in workers/pipelines/" in message


def test_two_pipelines_for_one_event_are_named_with_their_places(tmp_path: Path) -> None:
    other = ANSWERS.replace("answers =", "others =")
    message = refusal(tmp_path, {"answers.py": ANSWERS, "others.py": other, "news.py": NEWS})
    assert ".answers.answers and user_code_" in message
    assert '.others.others are both on "question.asked"' in message


def test_two_pipelines_of_one_name_are_named_with_their_modules(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"answers.py": ANSWERS, "news.py": NEWS.replace("news =", "answers =")})
    assert ".answers and user_code_" in message
    assert ".news both call a pipeline `answers`. Rename one." in message


def test_a_pipeline_on_an_event_outside_the_catalog_is_refused(tmp_path: Path) -> None:
    lonely = "\n    class _Lonely(Asked, tag='lonely', frozen=True):\n        pass\n"
    late = PIPELINES + lonely + "\n    late = Pipeline(on=_Lonely, flow=[answer])\n"
    message = refusal(tmp_path, {"answers.py": ANSWERS, "news.py": NEWS, "late.py": late})
    assert '.late.late is on "lonely", which is not in schemas/events/' in message


def test_a_flow_that_can_not_be_bound_stops_the_wiring(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"answers.py": ANSWERS, "news.py": NEWS.replace("flow=[listen]", "flow=[answer]")})
    assert ".news.answer: nothing upstream gives parameter `asked: Asked`" in message


@pytest.mark.parametrize(
    "options",
    ["timeout_s=0", "budget_usd=0", "retry=Retry(attempts=0)", "retry=Retry(base_s=-1)", "retry=Retry(attempts='5')"],
)
def test_options_out_of_range_are_refused_by_name(tmp_path: Path, options: str) -> None:
    text = NEWS.replace("import Pipeline", "import Pipeline, Retry").replace(
        "flow=[listen]", f"flow=[listen], {options}"
    )
    message = refusal(tmp_path, {"answers.py": ANSWERS, "news.py": text})
    assert ".news.news: " in message
    assert options.rpartition("=")[0].rpartition("(")[2] in message


def test_a_pipeline_on_no_event_is_refused_by_name(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"answers.py": ANSWERS, "news.py": NEWS.replace("on=Told", "on='news.told'")})
    assert ".news.news is on 'news.told', which is no Event. Name the class." in message


def test_the_graph_of_the_worked_example() -> None:
    support = wire(workers.pipelines, discover(schemas.events))["ticket.opened"]
    version, nodes, arrows = graph(support)
    assert (len(version), graph(support)[0]) == (12, version)
    drawn: list[dict[str, Any]] = msgspec.json.decode(nodes)
    assert {"name": "by_urgency", "kind": "router"} in drawn
    assert {"from": "answer/draft_reply", "to": "answer/check_reply", "label": None} in msgspec.json.decode(arrows)
    assert {"from": "by_urgency", "to": "close/close", "label": "close"} in msgspec.json.decode(arrows)


BEHIND = (
    PIPELINES
    + """
    from HERE.answers import answers
    from workers.kit import Run, pipeline

    async def shout(text: str) -> str:
        return text.upper()

    loud = Pipeline(after=answers, flow=[shout])

    @pipeline(after=loud)
    async def twice(run: Run, text: str, asked: Asked) -> int:
        return 2
"""
)


def test_followers_stand_behind_what_they_follow_and_take_what_it_gives(tmp_path: Path) -> None:
    answers = wired(tmp_path, {"answers.py": ANSWERS, "behind.py": BEHIND, "news.py": NEWS})["question.asked"]
    assert [(each.name, each.type, each.upstream) for each in answers.family] == [
        ("answers", "question.asked", None),
        ("loud", "question.asked", str),
        ("twice", "question.asked", str),
    ]
    assert [each.name for each in answers.follow_ups] == ["loud"]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("late = Pipeline(on=Asked, after=answers, flow=[shout])", "is to be `on` an event or `after` a pipeline"),
        ("late = Pipeline(flow=[shout])", "is to be `on` an event or `after` a pipeline"),
        (
            "late = Pipeline(after=Pipeline(on=Asked, flow=[answer]), flow=[shout])",
            "is after something that is no pipeline of workers/pipelines/",
        ),
        ("late = Pipeline(after=answers, flow=[listen])", "nothing upstream gives parameter `told: Told`"),
    ],
)
def test_a_follower_that_does_not_fit_is_refused(tmp_path: Path, wrong: str, told: str) -> None:
    late = f"{BEHIND}\n    {wrong}\n"
    assert told in refusal(tmp_path, {"answers.py": ANSWERS, "behind.py": late, "news.py": NEWS})


STATES = """
    from msgspec import Struct
    from workers.kit import State

    class Mood(Struct, frozen=True):
        calm: bool = True

    async def feel(mood: State[Mood]) -> None: ...
"""


def test_two_states_of_one_name_are_refused(tmp_path: Path) -> None:
    both = [text.replace("flow=[", "flow=[feel, ") for text in (ANSWERS, NEWS)]
    files = {f"{name}.py": STATES + text for name, text in zip(("answers", "news"), both, strict=True)}
    message = refusal(tmp_path, files)
    assert ".answers and " in message
    assert ".news both call a state `Mood`. Rename one." in message


async def _draw() -> str:
    return "x"


async def _letters() -> list[str]:
    return ["x"]


async def _count(letter: str) -> int:
    return 1


async def _may_stop() -> str | Stop:
    return Stop(1)


@pytest.mark.parametrize(
    ("flow", "gives"),
    [
        ([_draw], str),
        ([_letters, each(_count)], list[int]),
        ([parallel(_draw, _letters)], None),
        ([route(_draw, {"x": [_count]}, otherwise=[_count])], int),
        ([route(_draw, {"x": [_count]}, otherwise=[])], None),
        ([_may_stop, _draw], None),
        ([], None),
    ],
)
def test_what_a_pipeline_gives_is_known_where_it_is_one_type(flow: Any, gives: Any) -> None:
    assert reading.gives(bind(flow, Event)) == gives
