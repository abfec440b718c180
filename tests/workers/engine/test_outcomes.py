"""What becomes of an event whose pipeline does not simply succeed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec import Struct

from schemas import Event
from service.core.errors import Outage
from service.core.settings import Settings
from tests.board import Board, board_on
from tests.eventually import eventually
from tests.programs import program_of
from workers.kit import Pipeline, Reject, Retry, Run


class Poked(Event, tag="poked", frozen=True):
    """`fails`: how often it fails before it succeeds; `how`: by what."""

    how: str = "boom"
    fails: int = 0
    note: str | None = None


class Seen(Struct, frozen=True):
    attempt: int


class Away(Exception):
    """Nothing of ours."""


async def poke(run: Run, event: Poked) -> Seen:
    if run.attempt <= event.fails:
        await _fail(event.how)
    return Seen(run.attempt)


async def _fail(how: str) -> None:
    match how:
        case "reject":
            raise Reject("this can't be done, ever")
        case "hang":
            await asyncio.Event().wait()
        case "big":
            return
        case _:
            raise Away("boom")


async def big(event: Poked) -> str:
    return "x" * 2_000_000 if event.how == "big" else "small"


QUICK = Retry(attempts=3, base_s=0.05, cap_s=0.1)


@asynccontextmanager
async def poking(settings: Settings, **options: Any) -> AsyncIterator[Board]:
    chosen = {"retry": QUICK, "timeout_s": 1.0, **options}
    async with board_on(
        settings, program_of(settings, poked=Pipeline(on=Poked, **({"flow": [poke]} | chosen)))
    ) as board:
        yield board


async def test_its_own_failures_are_attempts_with_backoff(settings: Settings) -> None:
    async with poking(settings) as board:
        event = await board.ended(await board.send("poked", {"fails": 2}))
        assert (event["status"], event["attempts"], event["result"]) == ("succeeded", 3, {"attempt": 3})
        whats = [moment["what"] for moment in event["timeline"]]
        assert whats.count("claimed") == 3
        assert whats.count("retry") == 2


async def test_spent_attempts_are_a_dead_letter_once(settings: Settings) -> None:
    async with poking(settings) as board:
        said = {"id": "p-1", "source": "/mine", "subject": "s", "time": "2026-01-01T00:00:00+02:00", "ours": 7}
        event = await board.ended(await board.send("poked", {"fails": 99}, **said))
        assert (event["status"], event["attempts"], event["result"]) == ("dead", 3, None)
        assert (event["error"]["kind"], event["error"]["message"], event["error"]["step"]) == ("Away", "boom", "poke")
        (letter,) = (await board.http.get("/dead-letters")).json()["items"]
        assert (letter["reason"], letter["attempts"], letter["type"]) == ("attempts_exhausted", 3, "poked")
        data = {"how": "boom", "fails": 99, "note": None}
        assert letter["event"] == {"specversion": "1.0", "type": "poked", **said, "data": data}
        (entry_id, fields) = await eventually(lambda: _relayed(board))
        assert fields[b"dead_id"].decode() == letter["dead_id"]
        # The entry can be put on the ingest stream as it is: it is the same event, found by source and id.
        await board.redis.xadd("callboard:ingest", {"event": fields[b"event"]})
        await eventually(lambda: _drained(board))
        assert len(await board.sql("select 1 from events union all select 1 from dead_letters")) == 2
        assert entry_id


async def _relayed(board: Board) -> Any:
    entries = await board.redis.xrange("callboard:dead")
    return entries[0] if entries else None


async def _drained(board: Board) -> bool:
    return not await board.redis.xlen("callboard:ingest")


async def test_reject_is_dead_at_once(settings: Settings) -> None:
    async with poking(settings) as board:
        event = await board.ended(await board.send("poked", {"fails": 99, "how": "reject"}))
        assert (event["status"], event["attempts"], event["error"]["kind"]) == ("dead", 1, "Reject")
        (letter,) = (await board.http.get("/dead-letters", params={"reason": "rejected"})).json()["items"]
        assert letter["event_id"] == event["event_id"]


async def test_an_attempt_that_hangs_is_ended_and_charged(settings: Settings) -> None:
    async with poking(settings, timeout_s=0.3) as board:
        event = await board.ended(await board.send("poked", {"fails": 1, "how": "hang"}))
        assert (event["status"], event["attempts"]) == ("succeeded", 2)
        (retry,) = [moment for moment in event["timeline"] if moment["what"] == "retry"]
        assert retry["detail"]["error"]["kind"] == "TimeoutError"
        assert "0.3 s" in retry["detail"]["error"]["message"]


async def test_an_error_is_of_the_present_run_and_the_list_tells_it_too(settings: Settings) -> None:
    async def away(event: Poked) -> Seen:
        if event.how == "hang":
            await asyncio.Event().wait()
        raise Outage("it is away", 600, known_delay=True)

    async def errors(event_id: str) -> set[str | None]:
        items = (await board.http.get("/events", params={"id": event_id})).json()["items"]
        return {(each["error"] or {}).get("message") for each in (*items, await board.show(event_id))}

    async def is_put_off(event_id: str) -> bool:
        return bool((await board.show(event_id))["status"] == "scheduled")

    async with poking(settings, flow=[away], timeout_s=60) as board:
        event_id = await board.send("poked", {}, partitionkey="k")
        await eventually(lambda: is_put_off(event_id))
        assert await errors(event_id) == {"it is away"}
        assert (await board.http.post(f"/events/{event_id}/cancel")).status_code == 202
        assert await errors(event_id) == {"it is away"}
        await board.send("poked", {"how": "hang"}, partitionkey="k")
        assert (await board.http.post(f"/events/{event_id}/replay")).status_code == 202
        assert await errors(event_id) == {None}


async def test_a_result_over_the_limit_is_refused_with_its_size(settings: Settings) -> None:
    async with poking(settings, flow=[big]) as board:
        event = await board.ended(await board.send("poked", {"how": "big"}))
        assert event["status"] == "dead"
        assert "2000002 bytes" in event["error"]["message"]


async def test_an_outage_charges_nothing(settings: Settings) -> None:
    gone = iter([True, True, True, True, True, False])

    async def out(run: Run, event: Poked) -> Seen:
        if next(gone):
            raise Outage("the provider is away", 0.01)
        return Seen(run.attempt)

    async with poking(settings, flow=[out]) as board:
        event = await board.ended(await board.send("poked", {}))
        assert (event["status"], event["attempts"]) == ("succeeded", 1)
        assert [moment["what"] for moment in event["timeline"]].count("snoozed") == 5


async def test_of_outages_that_others_do_not_have_only_so_many_are_free(settings: Settings) -> None:
    """`exact` ones, a turn that is waited for, do not count; any other outage begins the count anew."""
    miss, turn = Outage("down for us", 0.01, max_uncharged=2), Outage("its turn", 0.01, known_delay=True)
    away = Outage("away", 0.01)
    raised = iter([miss, turn, miss, miss, miss, away, miss, miss, None])

    async def out(run: Run, event: Poked) -> Seen:
        if error := next(raised):
            raise error
        return Seen(run.attempt)

    async with poking(settings, flow=[out]) as board:
        event = await board.ended(await board.send("poked", {}))
        whats = [moment["what"] for moment in event["timeline"]]
        assert [what for what in whats if what in ("snoozed", "retry")] == ["snoozed"] * 3 + ["retry"] + ["snoozed"] * 4
        assert (event["status"], event["attempts"]) == ("succeeded", 2)


async def test_a_type_this_worker_does_not_know_waits(settings: Settings) -> None:
    async with poking(settings) as board:
        program = program_of(settings, poked=Pipeline(on=Poked, flow=[poke]))
        event_id = await board.send("poked", {})
        await board.ended(event_id)
        await board.sql("update events set type = 'from.the.future'")  # as a newer API would have stored it
        await board.http.post(f"/events/{event_id}/replay")
        waiting = await eventually(lambda: _waiting(board, event_id))
        assert (waiting["attempts"], waiting["status"]) == (0, "scheduled")
        assert program.wiring


async def _waiting(board: Board, event_id: str) -> Any:
    event = await board.show(event_id)
    return event if event["status"] == "scheduled" else None


async def test_a_delayed_event_starts_when_it_is_due(settings: Settings) -> None:
    async with poking(settings) as board:
        due = datetime.now(UTC) + timedelta(seconds=1.5)
        event_id = await board.send("poked", {}, dueat=due.isoformat())
        assert (await board.show(event_id))["status"] == "scheduled"
        event = await board.ended(event_id)
        started = datetime.fromisoformat(event["started_at"])
        assert due <= started <= due + timedelta(seconds=3)


async def test_with_every_key_of_arq_gone_retries_still_happen(settings: Settings) -> None:
    async with poking(settings, retry=Retry(attempts=3, base_s=1.0, cap_s=1.0)) as board:
        event_id = await board.send("poked", {"fails": 1})
        await eventually(lambda: _waiting_or_done(board, event_id))
        await board.redis.delete(*await board.redis.keys("*arq*") or ["nothing"])
        assert (await board.ended(event_id))["status"] == "succeeded"


async def _waiting_or_done(board: Board, event_id: str) -> bool:
    return (await board.show(event_id))["status"] in ("scheduled", "succeeded")
