"""Row 51 again, with nodes that draw ids, return sets and use resources: killed at the boundaries of the journal, they
post nothing twice under two keys, and put no result beside the wrong item."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Final

import pytest

from tests.faults import usercode
from tests.faults.orders import FILES
from tests.faults.rig import Rig
from tests.faults.test_twenty_nodes import WAVE, Proof

ITEMS: Final = ["chair", "lamp", "table", "lamp", "chair"]
STEPS: Final = (
    "draw",
    "distinct",
    "listed",
    "note",
    "conclude",
    *(f"{node}[{n}]" for node in ("ship", "mail") for n in range(3)),
)
OUTSIDE: Final = [step for step in STEPS if step.startswith(("ship", "mail", "note"))]
# Some die early and some late, since each step throws the dice; what the steps are called hangs on what was drawn.
ANYWHERE: Final = [
    f"{failpoint}=kill@{chance}" for failpoint in ("step", "step_done", "step_kept") for chance in (0.3, 0.1)
]


async def prove(rig: Rig, kind: str, failpoints: list[str]) -> None:
    tree = rig.newer({**usercode.FILES, **FILES})
    await rig.api(tree=tree)
    proof = Proof(rig, tree, kind, {"items": ITEMS})
    for begin in range(0, len(failpoints), WAVE):
        await proof.wave(failpoints[begin : begin + WAVE], [])
    await rig.worker(tree=tree, concurrency=100, wait=False)
    for event_id in proof.events:
        event = await proof.ended(event_id)
        assert (event["status"], event["attempts"]) == ("succeeded", 1), event["error"]
        assert event["result"]["mixed"] == []
        (order,) = event["result"]["orders"]
        _posted_once(rig, event_id, order, set(ITEMS))
        deaths = [struck.point for struck in proof.struck if struck.event_id == event_id]
        cut_off = sum(point.startswith("step_done") for point in deaths)
        for name, items in (("mails", set(ITEMS)), ("notes", {"note"})):
            sent = _lines(Path(rig.children[0].environ["CALLBOARD_DATA_DIR"]) / name, event_id)
            assert {item: each for item, (each, _) in sent.items()} == {item: {order} for item in items}
            # A worker that dies between the sending and the storing has its step run again: nothing else has.
            assert sum(times - 1 for _, times in sent.values()) <= cut_off, deaths
    assert rig.faults == len(failpoints)


def _posted_once(rig: Rig, event_id: str, order: str, items: set[str]) -> None:
    """Whatever was posted again was the same, under the same key."""
    keys, bodies = defaultdict(set), defaultdict(set)
    for effect in rig.sink.effects:
        if effect.key.startswith(event_id):
            item = str(effect.body["item"])
            keys[item].add(effect.key)
            bodies[effect.key].add((item, effect.body["order"]))
    assert items <= keys.keys()
    assert {item: found for item, found in keys.items() if len(found) > 1} == {}
    assert {key: found for key, found in bodies.items() if len(found) > 1} == {}
    assert {body for found in bodies.values() for body in found if not body[0].startswith("parcel")} == {
        (item, order) for item in keys if not item.startswith("parcel")
    }


def _lines(file: Path, event_id: str) -> dict[str, tuple[set[str], int]]:
    """By item: the orders, and how many lines."""
    rows = [line.split() for line in file.read_text().splitlines() if line.startswith(event_id)]
    times = Counter(item for _, item, _ in rows)
    return {item: ({order for _, other, order in rows if other == item}, times[item]) for item in times}


async def test_row_51_killed_with_an_order_drawn_and_a_set_returned(rig: Rig) -> None:
    await prove(rig, "ordered", ["step_kept:ship[0]", "step:mail[1]", "step_done:note"])


async def test_row_51_killed_somewhere_in_a_free_form_of_steps_within_steps(rig: Rig) -> None:
    await prove(rig, "called", ["step_kept=kill@0.3", "step_done=kill@0.1", "step=kill@0.1"])


@pytest.mark.slow_fault
async def test_row_51_killed_at_every_boundary_of_an_order(rig: Rig) -> None:
    around = [f"{failpoint}:{step}" for step in OUTSIDE for failpoint in ("step_done", "step_kept")]
    await prove(rig, "ordered", [*(f"step:{step}" for step in STEPS), *around, "settle_begin", "settle_committed"])


@pytest.mark.slow_fault
async def test_row_51_killed_anywhere_in_a_free_form_of_steps_within_steps(rig: Rig) -> None:
    await prove(rig, "called", ANYWHERE * 3)
