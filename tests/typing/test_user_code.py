"""mypy --strict on what a person writes: the right thing passes, a wrong type is found."""

import os
import subprocess
import sys

import pytest

from tests.processes import ROOT, mypy_cache_in

BEFORE = """
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Literal
from uuid import UUID

from msgspec import Struct

from schemas import Event
from workers.kit import Pipeline, Reject, Retry, Run, Settings, State, Stop, each, parallel, pipeline, route


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


class Talk(Struct, frozen=True):
    turns: tuple[str, ...] = ()


async def note(run: Run, talk: State[Talk], text: str) -> int:
    talk.set(Talk((*talk.value.turns, text)))
    run.emit(Opened(text), key=run.key)
    return len(talk.value.turns)


class Crm(Settings, frozen=True):
    crm_url: str


async def look_up(run: Run, crm: Crm, name: str) -> str:
    return crm.crm_url + name


async def recall(talk: State[Talk], n: int) -> str:
    return talk.value.turns[n]


async def finish(run: Run, ticket: Opened, language: Language | None) -> None:
    found = await run.vectors.search("tickets", ticket.body, k=3)
    run.vectors.upsert("tickets", run.key or str(run.event_id), ticket.body, {"n": str(len(found))})
    reply = await run.web.post("https://example.org", json={"to": [ticket.body]}, timeout_s=3)
    if reply.status == 204:
        raise Reject("nothing to be done")
    raise Reject("come back never")


class Browser:
    async def read(self, url: str) -> str:
        return url


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    yield Browser()


async def words(ticket: Opened) -> list[Language]:
    return [Language(word) for word in ticket.body.split()]


async def look(browser: Browser, language: Language) -> Triage | Stop:
    return Triage("low") if await browser.read(language.code) else Stop()


async def draft(run: Run, topic: str, round_no: int) -> Language:
    return Language(topic * round_no)


"""
RIGHT = """
support = Pipeline(
    on=Opened,
    flow=[parallel(classify, language), route(by_urgency, {"high": [finish], "low": []}, otherwise=[finish]), finish],
    retry=Retry(attempts=3, base_s=0.5, cap_s=10),
    timeout_s=30,
    limits_s={classify: 20.0, finish: 3},
)
nested = Pipeline(
    on=Opened,
    flow=[
        parallel([words, each(look, at_once=3, collect=True)], parallel(language, finish), at_once=2, collect=True),
        parallel([route(by_urgency, {"high": [], "low": [parallel(finish)]})]),
    ],
    limits_s={look: 1.5},
    resources=[open_browser],
)


@pipeline(on=Opened, retry=Retry(attempts=2), timeout_s=60, limits_s={draft: 20, look: 3.5}, resources=[open_browser])
async def critic(run: Run, ticket: Opened) -> tuple[datetime, float, UUID, Language] | None:
    browser: Browser = await run.resource(Browser)
    await run.outside()
    for round_no in range(3):
        found = await run.step(draft, ticket.body, round_no=round_no)
        triage = await run.step(classify, ticket)
        if triage.urgency == "high" and not isinstance(await run.step(look, browser, found), Stop):
            return run.now(), run.random(), run.uuid(), found
    return None


told = Pipeline(after=support, flow=[classify])


@pipeline(after=told)
async def free(run: Run, ticket: Opened, triage: Triage) -> str:
    turns = await run.step(note, ticket.body)
    return await run.step(recall, turns - 1)


@pipeline(on=Opened)
async def settled(run: Run, ticket: Opened, crm: Crm) -> str:
    return await run.step(look_up, name=ticket.body)


@pipeline(on=Opened, timeout_s=5)
async def alone(run: Run, ticket: Opened) -> int:
    return await run.step(note, text=ticket.body)
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
        'Argument "on" to "Pipeline" has incompatible type "type[Triage]"; expected "type[Event] | None"',
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
    "a setting of the engine": (
        "async def bad(run: Run) -> None:\n    print(run.settings)\n",
        '"Run" has no attribute "settings"',
    ),
    "an event that is changed": (
        "async def bad(ticket: Opened) -> None:\n    ticket.body = ''\n",
        'Property "body" defined in "Opened" is read-only',
    ),
    "a bound that is no number": (
        "p = parallel(classify, at_once='2')\n",
        'Argument "at_once" to "parallel" has incompatible type "str"; expected "int"',
    ),
    "a member that is no node": (
        "p = parallel([classify, 5])\n",
        "List item 1 has incompatible type",
    ),
    "each of a flow": (
        "p = each([classify])\n",
        'Argument 1 to "each" has incompatible type',
    ),
    "a limit that is a text": (
        "p = Pipeline(on=Opened, flow=[classify], limits_s={classify: '20'})\n",
        "Dict entry 0 has incompatible type",
    ),
    "a limit of a name": (
        "p = Pipeline(on=Opened, flow=[classify], limits_s={'classify': 20.0})\n",
        "Dict entry 0 has incompatible type",
    ),
    "a resource that is not opened and closed": (
        "p = Pipeline(on=Opened, flow=[classify], resources=[by_urgency])\n",
        "List item 0 has incompatible type",
    ),
    "a resource that was opened": (
        "p = Pipeline(on=Opened, flow=[classify], resources=[open_browser()])\n",
        "List item 0 has incompatible type",
    ),
    "a resource taken for another type": (
        "async def bad(run: Run) -> Language:\n    return await run.resource(Browser)\n",
        'Argument 1 to "resource" of "Run" has incompatible type "type[Browser]"; expected "type[Language]"',
    ),
    "a step given another type": (
        "async def bad(run: Run, ticket: Opened) -> None:\n    await run.step(classify, 'ticket')\n",
        'No overload variant of "step" of "Run" matches argument types',
    ),
    "a step whose result is taken for another": (
        "async def bad(run: Run, t: Opened) -> Language:\n    found = await run.step(classify, t)\n    return found\n",
        'Incompatible return value type (got "Triage", expected "Language")',
    ),
    "a free form on another event": (
        "@pipeline(on=Opened)\nasync def bad(run: Run, triage: Triage) -> None: ...\n",
        "incompatible type",
    ),
    "a time that is a number": (
        "async def bad(run: Run) -> float:\n    return run.now()\n",
        'Incompatible return value type (got "datetime", expected "float")',
    ),
    "the outside by its name": (
        "async def bad(run: Run) -> None:\n    await run.outside('mail')\n",
        'Too many arguments for "outside" of "Run"',
    ),
    "the outside without a wait": (
        "async def bad(run: Run) -> None:\n    done: bool = run.outside()\n",
        'Incompatible types in assignment (expression has type "Coroutine[Any, Any, None]", variable has type "bool")',
    ),
    "a setting that is changed": (
        "async def bad(crm: Crm) -> None:\n    crm.crm_url = ''\n",
        'Property "crm_url" defined in "Crm" is read-only',
    ),
    "a state of another type": (
        "async def bad(talk: State[Talk]) -> None:\n    talk.set(Triage('high'))\n",
        'Argument 1 to "set" of "State" has incompatible type "Triage"; expected "Talk"',
    ),
    "a state that is changed": (
        "async def bad(talk: State[Talk]) -> None:\n    talk.value = Talk()\n",
        'Property "value" defined in "State" is read-only',
    ),
    "a state of no Struct": (
        "async def bad(talk: State[int]) -> None: ...\n",
        'Type argument "int" of "State" must be a subtype of "Struct"',
    ),
    "a child that is no event": (
        "async def bad(run: Run) -> None:\n    run.emit(Triage('high'))\n",
        'Argument 1 to "emit" of "Run" has incompatible type "Triage"; expected "Event"',
    ),
    "a key by its place": (
        "async def bad(run: Run) -> None:\n    run.emit(Opened(''), 'ann')\n",
        'Too many positional arguments for "emit" of "Run"',
    ),
    "a step of a node with a state, and a wrong argument": (
        "async def bad(run: Run) -> None:\n    await run.step(note, 5)\n",
        'No overload variant of "step" of "Run" matches argument types',
    ),
    "a pipeline after an event": (
        "p = Pipeline(after=Opened, flow=[classify])\n",
        'Argument "after" to "Pipeline" has incompatible type "type[Opened]"; expected "Pipeline | None"',
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
    mypy_cache_in(folder)
    process = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context", "--no-pretty"]
        + ["--config-file", str(ROOT / "pyproject.toml")]
        + [f"{name}.py" for name in texts],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not process.stderr
    lines = process.stdout.splitlines()
    return {name: "\n".join(line for line in lines if line.startswith(f"{name}.py:")) for name in texts}


def test_right_user_code_passes(said: dict[str, str]) -> None:
    assert said["right"] == ""


@pytest.mark.parametrize("number", range(len(WRONG)), ids=list(WRONG))
def test_a_wrong_type_is_found(said: dict[str, str], number: int) -> None:
    _, message = list(WRONG.values())[number]
    found = said[f"wrong_{number}"].splitlines()
    assert [line for line in found if ": error: " in line and message in line], found
    assert len([line for line in found if ": error: " in line]) == 1
