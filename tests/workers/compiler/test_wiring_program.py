"""Every wiring error, through the program's own check: one sentence with its place and the nearest fix, and status 78.

All in one process: test_extension.py has a process for each of a few."""

import json
import subprocess
import sys
from textwrap import dedent

import pytest

from service.core.program import MISFIT
from tests.processes import alone, product_in
from tests.test_extension import NOWHERE

EVENT = """
    from schemas import Event


    class Asked(Event, tag="broken.asked", frozen=True):
        text: str
"""
NODES = """
    from collections.abc import AsyncIterator
    from contextlib import asynccontextmanager
    from typing import Literal

    from msgspec import Struct

    from schemas import Event
    from schemas.events.broken import Asked
    from workers.kit import Pipeline, Retry, Run, State, each, parallel, route


    class One(Struct, frozen=True):
        text: str


    class Two(Struct, frozen=True):
        text: str


    class _Elsewhere(Event, tag="broken.elsewhere", frozen=True):
        text: str


    async def one(asked: Asked) -> One: ...
    async def one_more(asked: Asked) -> One: ...
    async def two(one: One) -> Two: ...
    async def pick() -> Literal["a", "b"]: ...
    async def anything() -> str: ...
    async def item(two: Two, asked: Asked) -> One: ...
    async def no_type(asked) -> None: ...
    async def no_return(asked: Asked): ...
    def not_async(asked: Asked) -> None: ...
    async def not_there(found: "Nowhere") -> None: ...
    async def several(*asked: Asked) -> None: ...
    async def open_plainly() -> AsyncIterator[Two]: ...
    @asynccontextmanager
    async def open_untyped():
        yield 1
    async def stateful(one: State[int]) -> None: ...
    @asynccontextmanager
    async def open_two() -> AsyncIterator[Two]:
        yield Two("")
    @asynccontextmanager
    async def open_two_more() -> AsyncIterator[Two]:
        yield Two("")


"""
# What `broken = …` is, and what its sentence has to name.
FLOWS = {
    "[no_type]": ["broken.no_type: parameter `asked` has no type. Annotate it"],
    "[no_return]": ["broken.no_return does not say what it returns. Annotate it"],
    "[not_async]": ["broken.not_async is no async function. A node is written `async def`."],
    "[not_there]": ["broken.not_there", "'Nowhere'", "Import the type"],
    "[several]": ["broken.several: parameter `*asked: ", "Write it plainly."],
    "['one']": ["one is no async function"],
    "[two]": ["broken.two: nothing upstream gives parameter `one: One`", "Put a node that returns One before it"],
    "[parallel(one, one_more), two]": ["broken.two: parameter `one: One` could be what one and one_more give"],
    "[parallel(one, collect=True), two]": ["broken.two", "What one gives may be missing: ask for `one: One | None`."],
    "[parallel()]": ["parallel() has no member. Name the nodes"],
    "[parallel(one, at_once=0)]": ["broken.one, …): at_once is 0. Give a whole number from 1 up."],
    "[each(item)]": ["broken.item is run for each item of a list", "Put a node before it that returns list[…]"],
    "[[one, two]]": ["broken.one stands in a list of its own. A flow in a flow goes into parallel(…)."],
    "one": ["broken.one stands where a flow is wanted. Write a list of nodes"],
    "[route(anything, {'a': [one]})]": ["broken.anything is a router: let it return Literal[…]", "`otherwise`"],
    "[route(pick, {'a': [one]})]": ['broken.pick may return "b", which has no branch. Add it, or `otherwise`.'],
    "[route(pick, {'a': [], 'b': [], 'c': []})]": ['broken.pick never returns "c". Its labels are "a", "b".'],
    "[route(anything, {'otherwise': []}, otherwise=[])]": ['a label is called "otherwise"', "Rename it."],
    "[route(pick, [one])]": ["broken.pick: the branches of its route are no dict. Write {label: [nodes], …}."],
    "[one], limits_s={two: 1}": ["broken.broken: limits_s names", "broken.two, which is not in its flow."],
    "[one], limits_s={one: 0}": ["broken.broken: limits_s gives", "broken.one 0. Give seconds, more than 0."],
    "[one], limits_s=[one]": ["broken.broken: limits_s is no dict. Write {node: seconds, …}."],
    "[one], resources=[open_plainly]": ["broken.open_plainly is no resource. Write it `@asynccontextmanager"],
    "[one], resources=[open_untyped]": ["broken.open_untyped does not say what it gives. Annotate it"],
    "[one], resources=open_two": ["broken.broken: resources is no list. Write [workers.pipelines.broken.open_two]."],
    "[item], resources=[open_two, open_two_more]": ["broken.item: parameter `two: Two` could be what the resource"],
    "[one], retry=5": ["broken.broken: retry is 5. Write Retry(attempts=…)."],
    "[one], retry=Retry(attempts=0)": ["broken.broken: Expected `int` >= 1", "attempts"],
    "[one], timeout_s=0": ["broken.broken: Expected `float` > 0", "timeout_s"],
    "[one], after='broken.asked'": ["broken.broken is after something that is no pipeline of workers/pipelines/."],
    "[one], on=Asked, after=5": ["broken.broken is to be `on` an event or `after` a pipeline. Give it one of the two."],
    "[stateful]": ["broken.stateful: parameter `one` takes ", "write State[…] of a frozen msgspec Struct."],
    "[one], on='broken.asked'": ["broken.broken is on 'broken.asked', which is no Event. Name the class."],
    "[], on=_Elsewhere": [
        'broken.broken is on "broken.elsewhere", which is not in schemas/events/. Put the event there.'
    ],
}


CHECKS = """
import importlib, io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from workers.bootstrap import check

told = {}
for flow, text in json.load(sys.stdin).items():
    Path("workers/pipelines/broken.py").write_text(text, encoding="utf-8")
    sys.modules.pop("workers.pipelines.broken", None)
    importlib.invalidate_caches()
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        status = check()
    told[flow] = status, out.getvalue(), err.getvalue()
json.dump(told, sys.stdout)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """Of each flow the exit status and both outputs."""
    folder = product_in(tmp_path_factory.mktemp("broken"))
    (folder / "schemas/events/broken.py").write_text(dedent(EVENT), encoding="utf-8")
    texts = {}
    for flow in FLOWS:
        on = "" if "on=" in flow or "after=" in flow else ", on=Asked"
        texts[flow] = f"{dedent(NODES)}broken = Pipeline(flow={flow}{on})\n"
    done = subprocess.run(
        [sys.executable, "-B", "-c", CHECKS],
        cwd=folder,
        env=alone(NOWHERE),
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[int, str, str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("flow", FLOWS)
def test_a_wiring_error_is_one_sentence(told: dict[str, tuple[int, str, str]], flow: str) -> None:
    status, out, err = told[flow]
    assert (status, out) == (MISFIT, ""), err
    (sentence,) = err.splitlines()
    assert sentence.startswith("callboard worker: ")
    assert sentence.endswith(".")
    assert not [part for part in FLOWS[flow] if part not in sentence], sentence
