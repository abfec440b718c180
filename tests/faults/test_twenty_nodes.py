"""Promise 4 on a run of twenty nodes: SIGKILL at every boundary of a call and of the journal, and nothing completed is
done again. Each victim is a worker of its own that takes one event and dies with it; one survivor finishes them all."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pytest
from msgspec import Struct, json

from tests.eventually import eventually
from tests.faults import usercode
from tests.faults.child import Child
from tests.faults.rig import Rig
from tests.faults.sink import Called
from tests.faults.twenty import ASKS, CHEAP, FILES

TEXT: Final = "The lift is out of order on Monday."
WAVE: Final = 7
WAVE_S: Final = 60.0
END_S: Final = 300.0


def key(node: str) -> str:
    """Its step: inside the route behind the label."""
    inside = ("part_a", "part_b", "part_c", "joined", "check_a", "check_b", "mended")
    return f"long/{node}" if node in inside else node


class Struck(Struct, frozen=True):
    """A worker that died: at which claim of which event, and what the journal had by then."""

    point: str
    event_id: str
    claim: int
    kept: frozenset[str]


class Strikes:
    """Kills the worker whose call comes by one of `points`, ("arrived" | "answered", node): one worker for each."""

    def __init__(self, rig: Rig, points: list[tuple[str, str]]) -> None:
        self.left: Final = set(points)
        self._struck: Final[set[int]] = set()
        self._rig: Final = rig

    async def at(self, place: str, call: Called) -> None:
        point = (place, call.step)
        if point not in self.left:
            return
        rows = await self._rig.sql(
            "select pid from work join workers using (worker) where event_id = $1 and claim = $2",
            UUID(call.event_id),
            call.claim,
        )
        pids = {row["pid"] for row in rows} - self._struck
        if pids and point in self.left:
            self.left.discard(point)
            self._struck.update(pids)
            os.kill(pids.pop(), signal.SIGKILL)


class Proof:
    def __init__(self, rig: Rig, tree: Path, kind: str, data: Mapping[str, Any]) -> None:
        self.rig: Final = rig
        self.tree: Final = tree
        self.kind: Final = kind
        self.data: Final = data
        self.struck: Final[list[Struck]] = []
        self.events: Final[list[str]] = []

    async def send(self) -> str:
        answer = await self.rig.ask("POST", "/events", {"type": self.kind, "data": self.data})
        assert answer.status_code == 202, answer.text
        self.events.append(answer.json()["event_id"])
        return self.events[-1]

    async def wave(self, failpoints: list[str], calls: list[tuple[str, str]]) -> None:
        """One victim for each point; all of them die. A failpoint kills unless it says what else it does."""
        strikes = Strikes(self.rig, calls)
        self.rig.sink.at = strikes.at
        armed = [
            *(failpoint if "=" in failpoint else f"{failpoint}=kill" for failpoint in failpoints),
            *("" for _ in calls),
        ]
        victims = await asyncio.gather(
            *(self.rig.worker(tree=self.tree, concurrency=1, failpoints=failpoint, wait=False) for failpoint in armed)
        )
        deaths = [asyncio.create_task(self._died(victim)) for victim in victims]
        while left := [death for death in deaths if not death.done()]:
            # One event for each; more where one of an earlier wave was taken up and led past the point.
            await asyncio.gather(*(self.send() for _ in left))
            await asyncio.wait(left, timeout=WAVE_S)
        await asyncio.gather(*deaths)
        assert not strikes.left

    async def _died(self, victim: Child) -> None:
        assert await victim.ended(END_S) == -signal.SIGKILL, victim.said
        self.rig.injected()
        for row in await self.rig.claims(victim):
            journal = await self.rig.sql("select step from journal where event_id = $1", row["event_id"])
            point = victim.environ["CALLBOARD_FAILPOINTS"].removesuffix("=kill")
            kept = frozenset(step["step"] for step in journal)
            self.struck.append(Struck(point, str(row["event_id"]), row["claim"], kept))

    async def ended(self, event_id: str) -> dict[str, Any]:
        async def fact() -> Any:
            shown = (await self.rig.ask("GET", f"/events/{event_id}")).json()
            return shown if shown["finished_at"] else None

        found: dict[str, Any] = await eventually(fact, END_S)
        return found

    async def holds(self) -> None:
        """What the promise says, of every event."""
        ends = [await self.ended(each) for each in self.events]
        undisturbed = await self.ended(await self.send())
        assert undisturbed["status"] == "succeeded", undisturbed["error"]
        assert Counter(call.step for call in self.rig.sink.calls if call.event_id == self.events[-1]) == Counter(
            list(ASKS)
        )
        assert len(undisturbed["result"]) == 7
        for event in ends:
            assert (event["status"], event["attempts"]) == ("succeeded", 1), event["error"]
            assert event["result"] == undisturbed["result"]
            await self._nothing_again(event["event_id"])
        written = await self.rig.sql("select count(*) from documents where collection = 'twenty'")
        assert written[0]["count"] == len(self.events) * (len(ASKS) + 1)

    async def _nothing_again(self, event_id: str) -> None:
        """What the journal had at a death was never called again, and every step ran in the end or was found."""
        calls = Counter((call.claim, call.step) for call in self.rig.sink.calls if call.event_id == event_id)
        assert set(calls.values()) == {1}
        for each in (strike for strike in self.struck if strike.event_id == event_id):
            again = {node for claim, node in calls if claim > each.claim}
            assert not {key(node) for node in again} & each.kept, each
            before = {node for claim, node in calls if claim <= each.claim}
            assert {key(node) for node in before & again}.isdisjoint(each.kept)
        (last,) = await self.rig.sql(
            "select steps from attempts where event_id = $1 order by claim desc limit 1", UUID(event_id)
        )
        states = {step["step"]: step["state"] for step in json.decode(last["steps"])}
        assert states.keys() == {key(node) for node in (*ASKS, *CHEAP)}
        kept = {step for strike in self.struck if strike.event_id == event_id for step in strike.kept}
        assert {states[step] for step in kept} <= {"replayed"}
        assert {states[step] for step in states.keys() - kept} <= {"done", "replayed"}


async def prove(rig: Rig, failpoints: list[str], calls: list[tuple[str, str]]) -> Proof:
    tree = rig.newer({**usercode.FILES, **FILES})
    await rig.api(tree=tree)
    proof = Proof(rig, tree, "twenty", {"text": TEXT})
    for begin in range(0, len(failpoints), WAVE):
        await proof.wave(failpoints[begin : begin + WAVE], [])
    for begin in range(0, len(calls), WAVE):
        await proof.wave([], calls[begin : begin + WAVE])
    await rig.worker(tree=tree, concurrency=100, wait=False)
    await proof.holds()
    for strike in proof.struck:
        place, _, step = strike.point.partition(":")
        assert (step in strike.kept) == (place == "step_kept"), strike
    return proof


async def test_row_51_killed_around_a_call_in_a_parallel_in_a_route(rig: Rig) -> None:
    step = key("part_b")
    proof = await prove(rig, [f"step_done:{step}", f"step_kept:{step}"], [("arrived", "part_b")])
    assert rig.faults == len(proof.struck) == 3


@pytest.mark.slow_fault
async def test_row_51_killed_at_every_boundary(rig: Rig) -> None:
    around = [f"{place}:{key(node)}" for node in ASKS for place in ("step_done", "step_kept")]
    calls = [(place, node) for node in ASKS for place in ("arrived", "answered")]
    proof = await prove(rig, ["claim_committed", *around, "settle_begin", "settle_committed"], calls)
    assert rig.faults == 4 * len(ASKS) + 3
    assert {strike.point for strike in proof.struck} >= set(around)
