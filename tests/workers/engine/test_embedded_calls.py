"""`run.llm.embed` in a run: on record, within the budget, and not paid for twice."""

from pathlib import Path

import pytest

from schemas import Event
from service.core.settings import Settings
from tests.workers.engine.paying import COST_USD, open_shop, timeline_calls
from workers.kit import Pipeline, Retry, Run

TEXTS = [f"text {number}" for number in range(150)]  # three calls


class Job(Event, tag="job", frozen=True):
    pass


def embedding(budget_usd: float | None = None) -> tuple[Pipeline, list[list[list[float]]]]:
    """A pipeline whose step fails once after it has its vectors; and what each try got."""
    got: list[list[list[float]]] = []

    async def embed(run: Run, event: Job) -> int:
        got.append(await run.llm.embed(TEXTS))
        if len(got) == 1:
            raise ValueError("not yet")
        return len(got[-1])

    retry = Retry(attempts=2, base_s=0.02, cap_s=0.05)
    return Pipeline(on=Job, flow=[embed], retry=retry, budget_usd=budget_usd), got


async def test_a_retry_gets_back_the_same_vectors(settings: Settings, tmp_path: Path) -> None:
    job, got = embedding()
    async with open_shop(settings, tmp_path, job) as (board, provider):
        event = await board.ended(await board.send("job", {}))
        assert (event["status"], event["result"], event["attempts"]) == ("succeeded", 150, 2)
        assert provider.asked == 3
        assert len({vector[0] for vector in got[0]}) == 3, "each call had its own reply"
        assert got[0] == got[1]
        calls = timeline_calls(event)
        assert sorted(call["outcome"] for call in calls) == ["ok"] * 3 + ["recalled"] * 3
        assert {(call["prompt"], call["version"]) for call in calls} == {("(embed)", 0)}
        assert event["cost_usd"] == pytest.approx(3 * COST_USD)
        assert await board.sql("select * from prompts") == [], "there is no prompt that could be changed"


async def test_its_budget_holds_it(settings: Settings, tmp_path: Path) -> None:
    job, got = embedding(budget_usd=0.5)
    async with open_shop(settings, tmp_path, job) as (board, provider):
        event = await board.ended(await board.send("job", {}))
        assert (event["status"], got, provider.asked) == ("dead", [], 0)
        assert "of its budget of $0.5 are spent" in event["error"]["message"]
