"""Text of strangers: whatever a provider says, the event ends as it should, its calls are closed, nobody is hurt."""

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from schemas import Event
from service.core.settings import Settings
from tests.board import Board
from tests.eventually import eventually
from tests.workers.engine.paying import open_shop, said
from workers.kit import Pipeline, Retry, Run

HALF = b'{"error": {"message": "bad text: \\ud83d \\u0000", "type": "invalid", "code": "\\udcff"}}'
CLEAN = "bad text: \ufffd \ufffd"
MANY = 30


class Job(Event, tag="job", frozen=True):
    pass


async def sample(run: Run, event: Job) -> str:
    return await run.llm.ask("say", returns=str, text="hello")


def job() -> Pipeline:
    return Pipeline(on=Job, flow=[sample], retry=Retry(attempts=2, base_s=0.02, cap_s=0.05))


async def answer(status: int) -> Response:
    return Response(HALF, status_code=status, media_type="application/json")


async def _closed(board: Board) -> bool:
    return not await board.sql("select 1 from calls where outcome = 'open'")


async def test_a_refusal_with_half_a_surrogate_is_the_events_own(settings: Settings, tmp_path: Path) -> None:
    """A4, 400: dead at once, with what was said as far as it can be stored; its call is closed."""
    async with open_shop(settings, tmp_path, job()) as (board, provider):
        provider.answer = lambda: answer(400)
        event = await board.ended(await board.send("job", {}))
        assert (event["status"], event["attempts"], event["error"]["kind"]) == ("dead", 1, "LlmRefused")
        assert CLEAN in event["error"]["message"]
        assert event["error"]["where"].endswith(" in sample")
        assert provider.asked == 1
        await eventually(lambda: _closed(board))


async def test_an_outage_with_half_a_surrogate_is_told_to_all_and_hurts_none(
    settings: Settings, tmp_path: Path
) -> None:
    """A4, 500: uncharged while the provider is away; the breaker's reason carries the text to those that meet it."""
    async with open_shop(settings, tmp_path, job()) as (board, provider):
        provider.answer = lambda: answer(500)
        sent = [await board.send("job", {}) for _ in range(MANY)]

        async def met() -> Any:
            rows = await board.sql("select cause from work where cause like '%breaker%is open%'")
            return rows and all(CLEAN in row["cause"] for row in rows)

        await eventually(met)
        provider.answer = _well
        for event_id in sent:
            event = await board.ended(event_id, 30)
            assert (event["status"], event["attempts"]) == ("succeeded", 1), event["error"]
        await eventually(lambda: _closed(board))
        assert not await board.sql("select 1 from attempts where outcome in ('failed', 'handed_back')")


async def _well() -> Response:
    return said("well")


@pytest.mark.parametrize("body", [b"\xff\xfe", b'{"error": "\\ud83d"}', b'{"error": {"message": "\x00"}}', b"[]", b""])
async def test_any_body_of_a_refusal_ends_the_event(settings: Settings, tmp_path: Path, body: bytes) -> None:
    async def refuse() -> Response:
        return Response(body, status_code=422, media_type="application/json")

    async with open_shop(settings, tmp_path, job()) as (board, provider):
        provider.answer = refuse
        event = await board.ended(await board.send("job", {}))
        assert (event["status"], event["attempts"], event["error"]["kind"]) == ("dead", 1, "LlmRefused")
        assert json.dumps(event["error"])
