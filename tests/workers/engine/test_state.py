"""An actor's state: its own, carried through retries, restored from the journal, refused without a key."""

import asyncio
from typing import Any

from msgspec import Struct
from redis.asyncio import Redis

from schemas import Event
from service.core.settings import Settings
from tests.board import Board, board_on
from tests.eventually import eventually
from tests.programs import program_of
from workers.kit import Pipeline, Retry, Run, State, pipeline
from workers.kit.run import CHEAP_MS
from workers.kit.state import STATE_MAX

QUICK = Retry(attempts=2, base_s=0.02, cap_s=0.05)
SLOW_S = CHEAP_MS * 4 / 1000


class Wrote(Event, tag="wrote", frozen=True):
    text: str


class Asked(Event, tag="asked", frozen=True):
    """Of the free form."""

    text: str = ""


class Talk(Struct, frozen=True):
    turns: list[str] = []


class Count(Struct, frozen=True):
    n: int = 0


class Reply(Struct, frozen=True):
    turns: int


async def remember(run: Run, event: Wrote, state: State[Talk], count: State[Count]) -> Reply:
    state.set(Talk([*state.value.turns, event.text]))
    count.set(Count(count.value.n + 1))
    return Reply(len(state.value.turns))


async def states(board: Board, key: str) -> dict[str, Any]:
    found: dict[str, Any] = (await board.http.get(f"/actors/{key}")).json()["states"]
    return found


def talking(*flow: Any) -> Pipeline:
    return Pipeline(on=Wrote, flow=list(flow), retry=QUICK)


async def wrote(board: Board, text: str, key: str) -> dict[str, Any]:
    return await board.ended(await board.send("wrote", {"text": text}, partitionkey=key))


async def test_each_key_has_its_own(settings: Settings) -> None:
    async with board_on(settings, program_of(settings, talk=talking(remember))) as board:
        assert await states(board, "ann") == {}
        for key, text, turns in (("ann", "hello", 1), ("bob", "hi", 1), ("ann", "again", 2)):
            assert (await wrote(board, text, key))["result"] == {"turns": turns}
        assert await states(board, "ann") == {"Count": {"n": 2}, "Talk": {"turns": ["hello", "again"]}}
        assert await states(board, "bob") == {"Count": {"n": 1}, "Talk": {"turns": ["hi"]}}


async def test_what_a_step_set_is_seen_behind_it_and_by_a_retry(settings: Settings) -> None:
    """The step that set it is not run again, cheap or not; what one that failed had set is forgotten."""
    seen: list[list[str]] = []

    async def slow(event: Wrote, reply: Reply, state: State[Talk]) -> None:
        await asyncio.sleep(SLOW_S)
        state.set(Talk([*state.value.turns, "slow"]))

    async def stumble(event: Wrote, state: State[Talk]) -> Reply:
        seen.append(state.value.turns)
        state.set(Talk([*state.value.turns, f"try {len(seen)}"]))
        if len(seen) == 1:
            raise ValueError("not yet")
        return Reply(len(state.value.turns))

    async with board_on(settings, program_of(settings, talk=talking(remember, slow, stumble))) as board:
        assert (await wrote(board, "hello", "ann"))["result"] == {"turns": 3}
        assert seen == [["hello", "slow"]] * 2
        assert await states(board, "ann") == {"Count": {"n": 1}, "Talk": {"turns": ["hello", "slow", "try 2"]}}


async def test_a_dead_event_changes_nothing(settings: Settings) -> None:
    async def fail(event: Wrote, reply: Reply) -> None:
        raise ValueError("never")

    async with board_on(settings, program_of(settings, talk=talking(remember, fail))) as board:
        assert (await wrote(board, "hello", "ann"))["status"] == "dead"
        assert await states(board, "ann") == {}


async def test_a_replay_that_can_not_go_back_takes_the_state_as_it_is_now(settings: Settings) -> None:
    """What came before the state is remembered; what was made of it is not, though it cost something."""
    ran: list[str] = []

    async def before(event: Wrote) -> Count:
        ran.append("before")
        await asyncio.sleep(SLOW_S)
        return Count()

    async def behind(reply: Reply) -> Reply:
        ran.append("behind")
        await asyncio.sleep(SLOW_S)
        return reply

    async with board_on(settings, program_of(settings, talk=talking(before, remember, behind))) as board:
        first = await wrote(board, "one", "ann")
        await wrote(board, "two", "ann")
        ran.clear()
        await board.http.post(f"/events/{first['event_id']}/replay", json={"again": True})
        again = await board.ended(first["event_id"])
        assert (again["run"], again["result"], ran) == (2, {"turns": 3}, ["behind"])
        assert (await states(board, "ann"))["Talk"] == {"turns": ["one", "two", "one"]}


async def test_one_too_large_is_rejected_with_its_size(settings: Settings) -> None:
    async with board_on(settings, program_of(settings, talk=talking(remember))) as board:
        event = await wrote(board, "x" * STATE_MAX, "ann")
        assert (event["status"], event["attempts"], event["error"]["step"]) == ("dead", 1, "remember")
        assert f"the state Talk has {STATE_MAX + 14} bytes, {STATE_MAX} may be kept" in event["error"]["message"]


async def test_one_that_this_release_can_not_read_waits(settings: Settings) -> None:
    async with board_on(settings, program_of(settings, talk=talking(remember))) as board:
        await wrote(board, "one", "ann")
        await board.sql("""update states set value = '{"turns":"many"}' where type = 'Talk'""")
        event_id = await board.send("wrote", {"text": "two"}, partitionkey="ann")
        event = await eventually(lambda: _snooze(board, event_id))
        assert "the stored state Talk can't be read" in event["error"]["message"]
        assert (event["attempts"], len((await board.http.get("/dead-letters")).json()["items"])) == (0, 0)


async def _snooze(board: Board, event_id: str) -> dict[str, Any]:
    shown = await board.show(event_id)
    return shown if shown["status"] == "scheduled" else {}


async def test_both_doors_want_a_key(settings: Settings) -> None:
    async with board_on(settings, program_of(settings, talk=talking(remember))) as board:

        async def refused() -> Any:
            answer = await board.post("wrote", {"text": "whose?"})
            return answer.json() if answer.status_code == 422 else None

        result = await eventually(refused)
        assert [error["path"] for error in result["errors"]] == ["$.partitionkey"]
        slipped = (await board.sql("select event_id from events"))[:1]  # before the door had read what workers wrote
        for row in slipped:
            event = await board.ended(str(row["event_id"]))
            assert (event["status"], event["error"]["kind"]) == ("dead", "Reject")
            assert "talk keeps state by key" in event["error"]["message"]
        async with Redis.from_url(settings.redis_url) as producer:
            await producer.xadd("callboard:ingest", {"event": '{"type":"wrote","data":{"text":"whose?"}}'})
        letter = await eventually(lambda: _invalid(board))
        assert letter["error"]["message"].startswith("$.partitionkey: ")


async def _invalid(board: Board) -> dict[str, Any]:
    items = (await board.http.get("/dead-letters", params={"reason": "invalid"})).json()["items"]
    return items[0] if items else {}


async def note(run: Run, state: State[Talk], text: str) -> Reply:
    state.set(Talk([*state.value.turns, text]))
    return Reply(len(state.value.turns))


async def test_the_free_form_fills_it_and_lets_one_step_have_it(settings: Settings) -> None:
    holds, go_on = asyncio.Event(), asyncio.Event()

    async def hold(state: State[Talk]) -> None:
        holds.set()
        await go_on.wait()

    async def beside(run: Run) -> None:
        await holds.wait()
        await run.step(note, "beside")

    @pipeline(on=Asked, retry=QUICK)
    async def free(run: Run, event: Asked) -> Reply:
        if event.text == "both":
            await asyncio.gather(run.step(hold), beside(run))
        await run.step(note, event.text)
        return await run.step(note, "end")

    async with board_on(settings, program_of(settings, free=free)) as board:
        event = await board.ended(await board.send("asked", {"text": "hello"}, partitionkey="ann"))
        assert event["result"] == {"turns": 2}
        assert await states(board, "ann") == {"Talk": {"turns": ["hello", "end"]}}
        both = await board.ended(await board.send("asked", {"text": "both"}, partitionkey="ann"))
        go_on.set()
        assert "two steps side by side take the state Talk" in both["error"]["message"]
        keyless = await board.ended(await board.send("asked", {"text": "hello"}))
        assert (keyless["status"], keyless["error"]["kind"]) == ("dead", "Reject")
        assert "keeps state by key" in keyless["error"]["message"]
