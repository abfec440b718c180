"""Three workers and more than a provider allows: it never has to refuse, and what it allows is used."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from msgspec import Struct
from msgspec.structs import replace

from prompts import load
from schemas import Event
from service.core.settings import Settings
from tests.board import Board, board_on
from tests.eventually import eventually
from tests.models import with_keys
from tests.programs import program_of
from workers.kit import Pipeline, Run
from workers.simulator import running_simulator
from workers.simulator.behaviour import Behaviour
from workers.simulator.limits import Limit

EVENTS: Final = 200
PER_S: Final = 10
WORKERS: Final = 3
LATENCY_MS: Final = 1000.0  # a permit also covers what is written around a call: a tenth of this on a slow machine
FIRST_S: Final = 1.0  # a bucket begins with what comes in a second


class Asked(Event, tag="asked", frozen=True):
    text: str


class Said(Struct, frozen=True):
    text: str


async def ask(run: Run, event: Asked) -> Said:
    return Said(await run.llm.ask("say", returns=str, text=event.text))


PROMPT: Final = '+++\nmodel = "fast"\nmax_tokens = 200\nvariables = ["text"]\n+++\nSay {{ text }}.\n'


@asynccontextmanager
async def limited(settings: Settings, folder: Path, limits: str, limit: Limit) -> AsyncIterator[tuple[Board, str]]:
    """A Callboard under these limits, of a model whose provider has the same."""
    (folder / "say").mkdir()
    (folder / "say" / "v1.md").write_text(PROMPT)
    (folder / "models.toml").write_text(f'fast = [{{ provider = "openai", model = "ours", limits = {limits} }}]\n')
    behaviour = Behaviour(latency_ms=LATENCY_MS, latency_p99_ms=LATENCY_MS, limits=(limit,))
    async with running_simulator(behaviour=behaviour) as url:
        told = replace(settings, simulate="off", budget_day_usd=1000.0)
        told = with_keys(told, openai_api_key="k", openai_base_url=f"{url}/v1")
        program = replace(program_of(told, asked=Pipeline(on=Asked, flow=[ask])), prompts=load(folder))
        async with board_on(told, program, workers=WORKERS) as board:
            yield board, url


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        (f"{{ requests_per_min = {PER_S * 60} }}", Limit(requests=PER_S * 60)),
        ("{ concurrency = 9 }", Limit(concurrent=9)),
        ("{ tokens_per_min = 60000 }", Limit(tokens=60_000)),
    ],
    ids=["requests", "concurrency", "tokens"],
)
async def test_no_429_and_the_limit_is_used(settings: Settings, tmp_path: Path, limits: str, limit: Limit) -> None:
    async with limited(settings, tmp_path, limits, limit) as (board, url):
        for _ in range(EVENTS // 40):
            await asyncio.gather(*(board.send("asked", {"text": "hello"}) for _ in range(40)))
        await eventually(lambda: _over(board), 90)
        calls = await _calls(url)
        events = await board.sql("select status, attempts from events")
        assert {(row["status"], row["attempts"]) for row in events} == {("succeeded", 1)}
        assert {call["status"] for call in calls} == {200}, "not even before it is warm"
        # While there is plenty that waits, and since the bucket held nothing. Of a rate, what is left at a moment can
        # be used in the ten seconds behind it: it is lost where it is never caught up with. Of calls at a time, a
        # permit also covers what is written before a call, and its way to the next worker.
        begun, late = calls[0]["at"] - FIRST_S, calls[EVENTS * 3 // 5 : EVENTS * 4 // 5]
        if limit.concurrent:
            begun, late = calls[0]["at"], late[-1:]
        used = [
            _used(limit, [call for call in calls if call["at"] < end], end - begun)
            for end in (call["at"] for call in late)
        ]
        assert max(used) >= (0.6 if limit.concurrent else 0.9)


def _used(limit: Limit, calls: list[dict[str, Any]], took_s: float) -> float:
    """Which part of what its provider allows."""
    if limit.concurrent:
        return len(calls) * LATENCY_MS / 1000 / took_s / limit.concurrent
    if limit.tokens:
        used: int = sum(call["tokens_in"] + call["tokens_out"] for call in calls)
        return used / took_s / limit.tokens * 60
    return len(calls) / took_s / (limit.requests or 1) * 60


async def _over(board: Board) -> bool:
    return not await board.sql("select 1 from work limit 1")


async def _calls(url: str) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(trust_env=False) as http:
        calls: list[dict[str, Any]] = (await http.get(f"{url}/calls")).json()["calls"]
    return calls
