"""Children, followers and state, with workers that are killed around every commit, again and again."""

from typing import Any, Final

import pytest
from msgspec import json

from tests.eventually import eventually
from tests.faults.rig import Rig
from tests.faults.usercode import EVENTS, FILES, NODES, PIPELINES

KIDS: Final = 3
KEYS: Final = 4
OPEN_MAX: Final = 20
KILLS: Final = 5
# An event that was lost several times waits 2, 4, 8, 16 s, each behind a takeover, and others of its key behind it.
REST_S: Final = 150
ODDS: Final = "step=kill@0.02,claim_committed=kill@0.05,settle_begin=kill@0.1,settle_committed=kill@0.1"

FAMILY: Final = {
    **FILES,
    "schemas/events/probe.py": EVENTS
    + """

class Family(Event, tag="probe.family", frozen=True):
    token: str
    n: int


class Kid(Event, tag="probe.kid", frozen=True):
    token: str
""",
    "workers/nodes/probe.py": NODES.replace("Crash, Once", "Crash, Family, Kid, Once").replace(
        "Reject, Run", "Reject, Run, State"
    )
    + f"""

class Book(Struct, frozen=True):
    born: list[int] = []


class Born(Struct, frozen=True):
    n: int


async def bear(run: Run, event: Family, book: State[Book]) -> Born:
    for each in range({KIDS}):
        run.emit(Kid(f"{{event.token}}/{{each}}"), key=run.key if each else None)
    book.set(Book([*book.value.born, event.n]))
    await asyncio.sleep(0.01 if event.n % 2 else 0)
    return Born(event.n)


async def rest(born: Born) -> Born:
    await asyncio.sleep(0.01)
    return born


async def kid(event: Kid) -> None: ...


async def watch(born: Born) -> int:
    return born.n
""",
    "workers/pipelines/probe.py": PIPELINES.replace("Crash, Once", "Crash, Family, Kid, Once")
    + """
probe_family = Pipeline(on=Family, flow=[probe.bear, probe.rest], retry=RETRY)
probe_kid = Pipeline(on=Kid, flow=[probe.kid], retry=RETRY)
probe_watch = Pipeline(after=probe_family, flow=[probe.watch], retry=RETRY)
""",
}


@pytest.mark.slow_fault
async def test_row_02_children_followers_and_state_happen_once(rig: Rig) -> None:
    tree = rig.newer(FAMILY)
    await rig.api(tree=tree)
    await rig.worker(tree=tree, concurrency=3)
    for _ in range(2):
        await rig.keep(lambda: rig.worker(tree=tree, concurrency=10, failpoints=ODDS))
    sent = 0
    while rig.faults < KILLS:
        for key in range(KEYS):
            await rig.load.send("probe.family", key=f"key-{key}", n=sent + key)
        sent += KEYS
        await eventually(lambda: _at_most(rig, OPEN_MAX), REST_S)
    await eventually(lambda: _at_most(rig, 0), REST_S)
    rows = await rig.sql("select * from events")
    assert {row["status"] for row in rows} == {"succeeded"}
    by_parent: dict[Any, list[str]] = {}
    for row in rows:
        by_parent.setdefault(row["parent"], []).append(row["id"])
    parents = [row for row in rows if row["type"] == "probe.family" and row["follow_up"] is None]
    assert len(parents) == sent
    wanted = sorted(["1/after/probe_watch", *(f"1/bear/{n}" for n in range(1, KIDS + 1))])
    for row in parents:
        assert sorted(by_parent[row["event_id"]]) == wanted
    assert len(rows) == sent * (2 + KIDS)
    assert sorted(row["result"] for row in rows if row["follow_up"]) == sorted(
        f"{row['result'][5:-1]}" for row in parents
    )
    states = {
        row["partition_key"]: json.decode(row["value"])
        for row in await rig.sql("select partition_key, value from states")
    }
    assert states == {f"key-{k}": {"born": list(range(k, sent, KEYS))} for k in range(KEYS)}


async def _at_most(rig: Rig, count: int) -> bool:
    return len(await rig.sql("select 1 from work limit $1", count + 1)) <= count
