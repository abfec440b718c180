"""mypy --strict on what a person writes: the right thing passes, a wrong type is found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BEFORE = """
from typing import Literal

from msgspec import Struct

from schemas import Event
from workers.kit import Pipeline, Reject, Retry, Run, parallel, route


class Opened(Event, tag="opened", frozen=True):
    body: str


class Triage(Struct, frozen=True):
    urgency: Literal["high", "low"]


class Language(Struct, frozen=True):
    code: str


async def classify(run: Run, ticket: Opened) -> Triage:
    return await run.llm.ask("tickets/classify", returns=Triage, ticket=ticket)


async def language(run: Run, ticket: Opened) -> Language:
    return await run.llm.ask("tickets/language", returns=Language, model="fast", ticket=ticket)


async def by_urgency(triage: Triage) -> Literal["high", "low"]:
    return triage.urgency


async def finish(run: Run, ticket: Opened, language: Language | None) -> None:
    found = await run.vectors.search("tickets", ticket.body, k=3)
    run.vectors.upsert("tickets", run.key or str(run.event_id), ticket.body, {"n": str(len(found))})
    reply = await run.web.post("https://example.org", json={"to": [ticket.body]}, timeout_s=3)
    if reply.status == 204:
        raise Reject("nothing to be done")
    raise Reject("come back never")


"""
RIGHT = """
support = Pipeline(
    on=Opened,
    flow=[parallel(classify, language), route(by_urgency, {"high": [finish], "low": []}, otherwise=[finish]), finish],
    retry=Retry(attempts=3, base_s=0.5, cap_s=10),
    timeout_s=30,
)
"""
WRONG = {
    "a reply taken for another type": (
        "async def bad(run: Run) -> Language:\n    return await run.llm.ask('x', returns=Triage)\n",
        'Argument "returns" to "ask" of "RunLlm" has incompatible type "type[Triage]"; expected "type[Language]"',
    ),
    "a reply without a type": (
        "async def bad(run: Run) -> Triage:\n    return await run.llm.ask('x')\n",
        'Missing named argument "returns"',
    ),
    "an instance for a type": (
        "async def bad(run: Run) -> Language:\n    return await run.llm.ask('x', returns=Language('en'))\n",
        'Argument "returns" to "ask" of "RunLlm" has incompatible type "Language"',
    ),
    "a reply that was not awaited": (
        "async def bad(run: Run) -> Triage:\n    return run.llm.ask('x', returns=Triage)\n",
        'Incompatible return value type (got "Coroutine[Any, Any, Triage]"',
    ),
    "a field that a reply has not": (
        "async def bad(run: Run) -> None:\n    print((await run.llm.ask('x', returns=Triage)).mood)\n",
        '"Triage" has no attribute "mood"',
    ),
    "a node that is not async": (
        "def bad(ticket: Opened) -> Triage:\n    return Triage('high')\n\np = Pipeline(on=Opened, flow=[bad])\n",
        "List item 0 has incompatible type",
    ),
    "a node that was called": (
        "p = Pipeline(on=Opened, flow=[parallel(by_urgency(Triage('high')))])\n",
        'Argument 1 to "parallel" has incompatible type "Coroutine[',
    ),
    "a pipeline on no event": (
        "p = Pipeline(on=Triage, flow=[classify])\n",
        'Argument "on" to "Pipeline" has incompatible type "type[Triage]"; expected "type[Event]"',
    ),
    "a pipeline on an event's name": (
        "p = Pipeline(on='opened', flow=[classify])\n",
        'Argument "on" to "Pipeline" has incompatible type "str"',
    ),
    "a flow that is no list": (
        "p = Pipeline(on=Opened, flow=classify)\n",
        'Argument "flow" to "Pipeline" has incompatible type',
    ),
    "a branch that is no flow": (
        "p = Pipeline(on=Opened, flow=[route(by_urgency, {'high': finish})])\n",
        "Dict entry 0 has incompatible type",
    ),
    "an option that there is not": (
        "p = Pipeline(on=Opened, flow=[classify], retries=5)\n",
        'Unexpected keyword argument "retries" for "Pipeline"',
    ),
    "a retry that is a number": (
        "p = Pipeline(on=Opened, flow=[classify], retry=5)\n",
        'Argument "retry" to "Pipeline" has incompatible type "int"; expected "Retry"',
    ),
    "a run that is changed": (
        "async def bad(run: Run) -> None:\n    run.attempt = 0\n",
        'Property "attempt" defined in "Run" is read-only',
    ),
    "an event that is changed": (
        "async def bad(ticket: Opened) -> None:\n    ticket.body = ''\n",
        'Property "body" defined in "Opened" is read-only',
    ),
    "a search that is no list of texts": (
        "async def bad(run: Run) -> list[str]:\n    return await run.vectors.search('tickets', 'x')\n",
        'Incompatible return value type (got "list[Found]", expected "list[str]")',
    ),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What mypy says of each file, all in one run."""
    folder = tmp_path_factory.mktemp("typing")
    texts = {"right": RIGHT} | {f"wrong_{number}": text for number, (text, _) in enumerate(WRONG.values())}
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(BEFORE + text, encoding="utf-8")
    told = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", "--no-pretty"]
        + ["--config-file", "", "--cache-dir", str(folder / "cache"), "--explicit-package-bases"]
        + [f"{name}.py" for name in texts],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not told.stderr
    lines = told.stdout.splitlines()
    return {name: "\n".join(line for line in lines if line.startswith(f"{name}.py:")) for name in texts}


def test_right_user_code_passes(said: dict[str, str]) -> None:
    assert said["right"] == ""


@pytest.mark.parametrize("number", range(len(WRONG)), ids=list(WRONG))
def test_a_wrong_type_is_found(said: dict[str, str], number: int) -> None:
    _, message = list(WRONG.values())[number]
    found = said[f"wrong_{number}"].splitlines()
    assert [line for line in found if ": error: " in line and message in line], found
    assert len([line for line in found if ": error: " in line]) == 1
