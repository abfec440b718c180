"""One pair of servers for each process of tests, one rig for each test, and at the end the table of all processes."""

import asyncio
import os
import random
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

from service.core.migrate import migrate
from service.core.settings import Settings
from tests.faults import audit
from tests.faults.behind import DATABASE
from tests.faults.child import Child
from tests.faults.machines import Machines
from tests.faults.matrix import MATRIX, row_of
from tests.faults.rig import Rig, percentile
from tests.faults.sink import open_sink
from tests.results import record
from tests.servers import open_folder

SEED: Final = int(os.environ.get("FAULTS_SEED") or random.SystemRandom().randrange(1_000_000))
LONGEST: Final = 51
ROWS: Final = {int(row) for row in os.environ.get("FAULTS_ROWS", "").replace(",", " ").split()}
MEASURED: Final = "measured"
TAIL: Final = 3000
RESULTS: Final = Path(__file__).with_name("RESULTS.md")


def pytest_configure(config: pytest.Config) -> None:
    os.environ["FAULTS_SEED"] = str(SEED)  # the processes that run tests side by side inherit it


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {SEED} (make faults SEED={SEED} replays it)"


@pytest.fixture(scope="session")
def machines() -> Iterator[Machines]:
    with open_folder() as folder:
        both = Machines(folder)
        try:
            yield both
        finally:
            asyncio.run(both.stop())


@pytest.fixture
async def rig(machines: Machines, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(machines, tmp_path, SEED) as made:
        yield made


@asynccontextmanager
async def open_rig(machines: Machines, folder: Path, seed: int) -> AsyncIterator[Rig]:
    """A rig with an empty, migrated database and an empty Redis; ends every program it started."""
    await machines.start()
    await _empty(machines)
    async with AsyncExitStack() as stack:
        sink = await stack.enter_async_context(open_sink())
        rig = Rig(machines, sink, folder, seed, stack)
        stack.push_async_callback(rig.close)
        stack.push_async_callback(rig.load.http.aclose)
        stack.push_async_callback(_end, rig.children)
        await rig.client.flushall()
        await migrate(Settings(database_url=rig.database_url))
        await rig.script(audit.SCHEMA)
        rig.background(rig.watch())
        yield rig


async def _empty(machines: Machines) -> None:
    connection = await asyncpg.connect(machines.postgres.server.url, timeout=10)
    try:
        await connection.execute(f"drop database if exists {DATABASE} with (force)")
        await connection.execute(f"create database {DATABASE}")
    finally:
        await connection.close()


async def _end(children: list[Child]) -> None:
    for each in children:
        each.tell(signal.SIGKILL)
    for each in children:
        await each.ended()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report: pytest.TestReport = yield
    rig = getattr(item, "funcargs", {}).get("rig")
    if report.when == "call" and rig is not None:
        row = (row_of(item.name), rig.faults, rig.lost, rig.doubled, rig.rest_s, rig.takeovers_s)
        report.user_properties.append((MEASURED, row))
        if report.failed:
            report.sections.append(("seed", f"FAULTS_SEED={SEED} replays it"))
            report.sections += [
                (f"{each.name} (status {each.process.poll()})", each.said[-TAIL:]) for each in rig.children
            ]
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`make faults ROWS="4 22"`: only these rows of the matrix."""
    if ROWS:
        out = [item for item in items if row_of(item.name) not in ROWS]
        items[:] = [item for item in items if item not in out]
        config.hook.pytest_deselected(items=out)
    items.sort(key=lambda item: row_of(item.name) != LONGEST)  # else the other processes would wait for it at the end


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int) -> None:
    """The table of RESULTS.md: a line for each row that ran, of all its tests and all processes together."""
    rows = defaultdict(list)
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, measured in report.user_properties:
                if name == MEASURED:
                    number, *numbers = measured
                    rows[number].append((outcome, *numbers))
    if rows:
        lines = [
            f"seed {SEED}, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores\n",
            "| fault | runs | lost | doubled | at rest after | takeover p50 / p99 |",
            "| --- | --- | --- | --- | --- | --- |",
            *(_line(f"{number} · {MATRIX[number]}", *zip(*rows[number], strict=True)) for number in sorted(rows)),
        ]
        terminalreporter.write("\n" + "".join(f"{line}\n" for line in lines))
        if exitstatus == 0 and rows.keys() == MATRIX.keys():
            record(RESULTS, "".join(f"{line}\n" for line in lines))


def _line(
    fault: str,
    outcomes: Sequence[str],
    runs: Sequence[int],
    lost: Sequence[int],
    doubled: Sequence[int],
    rests_s: Sequence[float],
    takeovers_s: Sequence[Sequence[float]],
) -> str:
    if "failed" in outcomes:
        return f"| {fault} | failed | | | | |"
    spread = _spread([each for samples in takeovers_s for each in samples])
    return f"| {fault} | {sum(runs)} | {sum(lost)} | {sum(doubled)} | {max(rests_s):.1f} s | {spread} |"


def _spread(samples: Sequence[float]) -> str:
    """Median and 99th percentile, of so many samples."""
    if not samples:
        return ""
    return f"{percentile(samples, 0.5):.1f} / {percentile(samples, 0.99):.1f} s of {len(samples)}"
