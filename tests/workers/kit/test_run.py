"""What a node gets of its run: the names that README lists, and none of the engine's."""

import re
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from schemas import Event
from tests.processes import ROOT
from tests.workers.kit.runs import open_run
from workers.compiler.binding import bind
from workers.compiler.plan import execute
from workers.kit import Run

HIDDEN: Final = (
    *("settings", "clients", "facts", "guard", "keep", "effects", "outer", "load", "catalog", "resources"),
    *("limits_s", "call_log", "claim", "at"),
)


class Asked(Event, tag="asked", frozen=True):
    pass


@pytest.fixture
async def run() -> AsyncIterator[Run]:
    async with open_run() as opened:
        yield opened


def test_a_run_has_what_its_page_lists(run: Run) -> None:
    page = (ROOT / "workers" / "README.md").read_text(encoding="utf-8")
    section = page.partition("## What a run has\n")[2].partition("\n## ")[0]
    listed = set(re.findall(r"`run\.([a-z_.]+)", section))
    handles: dict[str, Any] = {"": run, "llm.": run.llm, "vectors.": run.vectors, "web.": run.web}
    there = {f"{path}{name}" for path, handle in handles.items() for name in dir(handle) if not name.startswith("_")}
    assert listed == there - {"llm", "vectors", "web"}


@pytest.mark.parametrize("name", HIDDEN)
async def test_what_is_the_engines_is_an_attribute_error_of_the_node(run: Run, name: str) -> None:
    async def looks(run: Run) -> str:
        return str(getattr(run, name))

    with pytest.raises(AttributeError, match=f"'Run' object has no attribute '{name}'"):
        await execute(bind([looks], Asked), run, Asked())
