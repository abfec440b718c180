"""One pair of servers for each process of tests, one rig for each test, and the table at the end."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.faults.machines import Machines
from tests.faults.rig import Rig, open_rig, percentile
from tests.servers import open_folder

SEED: Final = int(os.environ.get("CALLBOARD_SEED") or random.SystemRandom().randrange(1_000_000))
ROWS: Final = tuple(os.environ.get("CALLBOARD_ROWS", "").replace(",", " ").split())
TABLE: Final = pytest.StashKey[list[tuple[str, int, int, int, list[float]]]]()
TAIL: Final = 3000


@pytest.fixture(scope="session")
def machines() -> Iterator[Machines]:
    with open_folder() as folder:
        both = Machines(folder)
        try:
            yield both
        finally:
            asyncio.run(both.stop())


@pytest.fixture
async def rig(machines: Machines, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    async with open_rig(machines, tmp_path, SEED) as made:
        yield made
        row = (request.node.name.removeprefix("test_"), made.faults, made.lost, made.doubled, made.takeovers_s)
        request.config.stash.setdefault(TABLE, []).append(row)
        report = request.node.stash.get(REPORT, None)
        if report is not None and report.failed:
            for each in made.children:
                report.sections.append((f"{each.name} (status {each.process.poll()})", each.said[-TAIL:]))
            print(f"seed {SEED}: CALLBOARD_SEED={SEED} replays it")


REPORT: Final = pytest.StashKey[pytest.TestReport]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report: pytest.TestReport = yield
    if report.when == "call" and "rig" in getattr(item, "fixturenames", ()):
        item.stash[REPORT] = report
        report.sections.append(("seed", f"CALLBOARD_SEED={SEED} replays it"))
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`make faults ROWS="4 22"`: only these rows of the matrix."""
    if ROWS:
        wanted = [f"test_row_{int(row):02d}_" for row in ROWS]
        out = [item for item in items if not item.name.startswith(tuple(wanted))]
        items[:] = [item for item in items if item not in out]
        config.hook.pytest_deselected(items=out)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash.get(TABLE, [])
    if not rows:
        return
    write = terminalreporter.write_line
    write(f"\nseed {SEED}")
    write(f"{'fault':<58}{'runs':>6}{'lost':>6}{'doubled':>9}{'takeover p50/p99':>22}")
    for name, runs, lost, doubled, takeovers in rows:
        write(f"{name:<58}{runs:>6}{lost:>6}{doubled:>9}{_spread(takeovers):>22}")


def _spread(samples: list[float]) -> str:
    """Median and 99th percentile, of so many samples."""
    if not samples:
        return "-"
    return f"{percentile(samples, 0.5):.1f} / {percentile(samples, 0.99):.1f} s ({len(samples)})"
