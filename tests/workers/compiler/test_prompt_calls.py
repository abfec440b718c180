"""Calls of models that can't be answered whatever happens stop the boot; what is decided at run time does not."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

import prompts
from schemas.catalog import discover
from service.core.errors import WiringError
from tests.workers.kit.packages import package
from workers.compiler.prompt_calls import check_calls
from workers.compiler.wiring import everyone, wire

PROMPTS = prompts.load()
HEAD = """
    from contextlib import suppress
    from functools import wraps
    from msgspec import Struct
    from schemas import Event
    from workers.kit import Pipeline, Run, pipeline

    class Asked(Event, tag="question.asked", frozen=True):
        text: str

    class Reply(Struct, frozen=True):
        text: str

    class Open(Struct, frozen=True):
        rest: dict[str, str]
"""
FLOW = "\n    answers = Pipeline(on=Asked, flow=[answer])\n"
NODE = """
    async def answer(run: Run, asked: Asked) -> str:
        {lines}
        return "done"
"""


def boot(folder: Path, text: str) -> None:
    with package(folder, {"all.py": HEAD + text}) as found:
        for wired in everyone(wire(found, discover(found))):
            check_calls(wired.plan, PROMPTS)


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(WiringError) as refused:
        boot(folder, text)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ('run.llm.ask("tickets/clasify", returns=str, ticket=asked)', 'No prompt "tickets/clasify" (there are: '),
        ('run.llm.stream("tickets/clasify", returns=str, ticket=asked)', 'No prompt "tickets/clasify"'),
        ('run.llm.ask("tickets/classify@99", returns=str, ticket=asked)', "has no version 99"),
        ('run.llm.ask("tickets/classify", returns=str)', "wants ticket: give it by that name."),
        ('run.llm.ask("tickets/classify", returns=str, ticket=asked, tone="kind")', "declares no tone"),
        ('run.llm.ask("tickets/classify", returns=str, ticket=asked, model="fest")', 'No model alias "fest"'),
        ('run.llm.embed([asked.text], model="fest")', 'No model alias "fest"'),
        ('run.llm.ask("tickets/classify", ticket=asked)', "does not say what it gives. Write returns="),
        ('run.llm.ask("tickets/classify", returns=dict, ticket=asked)', "dict"),
        ('run.llm.ask("tickets/classify", returns=Open, ticket=asked)', "Open.rest is a dict"),
    ],
)
def test_what_can_not_be_answered_is_one_sentence_with_file_and_line(call: str, sentence: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, NODE.format(lines=f"await {call}") + FLOW)
    assert sentence in message
    file, line, *_ = message.split(":")
    assert call in Path(file).read_text(encoding="utf-8").splitlines()[int(line.split()[0]) - 1]


def test_a_body_and_the_nodes_that_it_runs_are_read_too(tmp_path: Path) -> None:
    node = NODE.format(lines='await run.llm.ask("no/such", returns=str)')
    body = "\n    @pipeline(on=Asked)\n    async def answers({}):\n        return await run.step(answer, asked)\n"
    for signature in ("run: Run, asked: Asked", "run, asked"):
        assert 'No prompt "no/such"' in refusal(tmp_path, node + body.format(signature))


def test_so_is_a_function_that_a_node_calls(tmp_path: Path) -> None:
    helper = NODE.format(lines='await run.llm.ask("no/such", returns=str)').replace("answer", "helped")
    message = refusal(tmp_path, helper + NODE.format(lines="await helped(run, asked)") + FLOW)
    assert 'No prompt "no/such"' in message


UNDECIDED = (
    "name = 'no/such'\n        await run.llm.ask(name, returns=str)",
    "given = {'ticket': asked}\n        await run.llm.ask('tickets/classify', returns=str, **given)",
    "run = asked\n        run.llm.ask('no/such', returns=str)",
    "try:\n            await run.llm.ask('no/such', returns=str)\n        except Exception:\n            pass",
    "with suppress(Exception):\n            await run.llm.ask('no/such', returns=str)",
    "later = lambda run: run.llm.ask('no/such', returns=str)",
    "Reply = dict\n        await run.llm.ask('tickets/classify', returns=Reply, ticket=asked)",
    "await asked.llm.ask('no/such', returns=str)",
    "await run.llm.embed([asked.text])",
    "await run.llm.ask('tickets/classify', returns=str, ticket=asked)",
)


@pytest.mark.parametrize("lines", UNDECIDED)
def test_what_is_decided_when_it_runs_is_no_alarm(lines: str, tmp_path: Path) -> None:
    boot(tmp_path, NODE.format(lines=lines) + FLOW)


@given(st.lists(st.sampled_from(UNDECIDED), min_size=2, max_size=4))
@examples(max_examples=30, deadline=None)
def test_nor_is_any_mixture_of_it(chosen: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:  # a fixture would be one for all examples
        boot(Path(folder), NODE.format(lines="\n        ".join(chosen)) + FLOW)


def test_a_wrapper_is_not_read(tmp_path: Path) -> None:
    wrapped = """
    def other(node):
        @wraps(node)
        async def inner(run, asked):
            return "never asked"
        return inner

    @other
"""
    boot(tmp_path, wrapped + NODE.format(lines='await run.llm.ask("no/such", returns=str)').lstrip("\n") + FLOW)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("async def answers(run: Run) -> str:\n        return ''", "can't be called with the run and the event"),
        ("async def answers(run, asked, more) -> str:\n        return ''", "missing a required argument: 'more'"),
        ("async def answers(asked: Asked, run: Run) -> str:\n        return ''", "Write `(run: Run, event: Asked)`."),
        ("async def answers(run, asked):\n        yield 1", "has a `yield` in its body"),
    ],
)
def test_a_body_that_can_not_be_called_stops_the_boot(body: str, sentence: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, f"\n    @pipeline(on=Asked)\n    {body}\n")
    assert sentence in message
    assert ".answers" in message
