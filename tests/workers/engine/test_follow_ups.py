"""A follower reacts to what another pipeline has succeeded with, as an event of its own."""

from typing import Any

from msgspec import Struct

from schemas import Event
from service.core.settings import Settings
from tests.board import Board, board_on
from tests.eventually import eventually
from tests.programs import program_of
from workers.kit import Pipeline, Retry, Run, State, pipeline

QUICK = Retry(attempts=2, base_s=0.02, cap_s=0.05)


class Order(Event, tag="order", frozen=True):
    n: int


class Bill(Struct, frozen=True):
    total: int


class Letter(Struct, frozen=True):
    text: str


class Tally(Struct, frozen=True):
    billed: int = 0


async def bill(event: Order) -> Bill:
    if event.n < 0:
        raise ValueError("never")
    return Bill(event.n * 10)


async def write(run: Run, event: Order, bill: Bill) -> Letter:
    return Letter(f"{event.n} for {bill.total}")


async def post(letter: Letter, event: Order) -> int:
    if event.n == 13:
        raise ValueError("lost in the post")
    return len(letter.text)


async def tally(event: Order, bill: Bill, state: State[Tally]) -> None:
    state.set(Tally(state.value.billed + bill.total))


def house() -> dict[str, Pipeline]:
    orders = Pipeline(on=Order, flow=[bill], retry=QUICK)
    letters = Pipeline(after=orders, flow=[write], retry=QUICK, timeout_s=7)

    @pipeline(after=letters, retry=QUICK)
    async def posted(run: Run, event: Order, letter: Letter) -> int:
        return await run.step(post, letter, event)

    return {"orders": orders, "letters": letters, "posted": posted, "tallied": Pipeline(after=orders, flow=[tally])}


async def follower(board: Board, parent: str, name: str, run: int = 1) -> dict[str, Any]:
    """The event of that follower, once it has ended."""

    async def there() -> Any:
        asked = {"source": f"/events/{parent}", "id": f"{run}/after/{name}"}
        return (await board.http.get("/events", params=asked)).json()["items"]

    (item,) = await eventually(there)
    return await board.ended(item["event_id"])


async def test_followers_and_theirs_get_the_event_and_what_was_given(settings: Settings) -> None:
    async with board_on(settings, program_of(settings, **house())) as board:
        parent = await board.send("order", {"n": 2}, partitionkey="ann", subject="s", mark="kept")
        assert (await board.ended(parent))["pipeline"] == "orders"
        letter = await follower(board, parent, "letters")
        assert (letter["pipeline"], letter["attempts_max"], letter["parent"]) == ("letters", 2, parent)
        assert {name: letter[name] for name in ("type", "data", "subject", "partitionkey", "mark")} == {
            "type": "order",
            "data": {"n": 2},
            "subject": "s",
            "partitionkey": "ann",
            "mark": "kept",
        }
        assert letter["result"] == {"text": "2 for 20"}
        assert (await follower(board, letter["event_id"], "posted"))["result"] == 8
        await follower(board, parent, "tallied")
        assert (await board.http.get("/actors/ann")).json()["states"] == {"Tally": {"billed": 20}}


async def test_a_follower_fails_for_itself_and_is_replayed_for_itself(settings: Settings) -> None:
    async with board_on(settings, program_of(settings, **house())) as board:
        parent = await board.send("order", {"n": 13}, partitionkey="ann")
        letter = await follower(board, parent, "letters")
        dead = await follower(board, letter["event_id"], "posted")
        assert (dead["status"], (await board.show(parent))["status"]) == ("dead", "succeeded")
        (found,) = (await board.http.get("/dead-letters")).json()["items"]
        assert found["event_id"] == dead["event_id"]
        await board.http.post(f"/events/{letter['event_id']}/replay")
        assert (await board.ended(letter["event_id"]))["run"] == 2
        assert (await follower(board, letter["event_id"], "posted", run=2))["status"] == "dead"
        await board.http.post(f"/events/{dead['event_id']}/replay")  # the run it follows has been superseded meanwhile
        again = await board.ended(dead["event_id"])
        assert (again["run"], again["error"]["message"]) == (2, "lost in the post")
        assert len(await board.sql("select 1 from events")) == 5


async def test_nobody_follows_what_did_not_succeed(settings: Settings) -> None:
    async with board_on(settings, program_of(settings, **house())) as board:
        parent = await board.send("order", {"n": -1}, partitionkey="ann")
        assert (await board.ended(parent))["status"] == "dead"
        assert len(await board.sql("select 1 from events")) == 1


async def test_a_key_that_only_a_follower_needs_is_not_asked_for_at_the_door(settings: Settings) -> None:
    async with board_on(settings, program_of(settings, **house())) as board:
        parent = await board.send("order", {"n": 1})
        tallied = await follower(board, parent, "tallied")
        assert (tallied["status"], (await board.show(parent))["status"]) == ("dead", "succeeded")
        assert "tallied keeps state by key" in tallied["error"]["message"]


async def test_a_worker_that_does_not_know_the_follower_lets_it_wait(settings: Settings) -> None:
    whole = house()
    async with board_on(settings, program_of(settings, **whole)) as board:
        parent = await board.send("order", {"n": 1}, partitionkey="ann")
        await follower(board, parent, "letters")
        await board.sql("delete from pipelines where name = 'letters'")
    less = {name: whole[name] for name in ("orders", "tallied")}
    async with board_on(settings, program_of(settings, **less)) as board:
        await board.sql(
            "with e as (update events set status = 'open' where follow_up = 'letters' returning *) insert into work"
            " (event_id, tenant, status, due_at, claim) select event_id, tenant, 'queued', now(), 1 from e"
        )
        waiting = await eventually(lambda: _waits(board))
        assert waiting["cause"] == 'this worker does not know the pipeline "letters"'
        assert waiting["attempts"] == 0
        shown = await board.show(str(waiting["event_id"]))
        errors = [entry["detail"]["error"] for entry in shown["timeline"] if entry["what"] == "snoozed"]
        assert 'does not know the pipeline "letters": deploy' in errors[-1]["message"]


async def _waits(board: Board) -> Any:
    rows = await board.sql(
        "select event_id, w.cause, w.attempts from work w join events using (event_id)"
        " where w.status = 'scheduled' and follow_up = 'letters'"
    )
    return rows[0] if rows else None


async def test_the_api_tells_who_follows_whom(settings: Settings) -> None:
    async with board_on(settings, program_of(settings, **house())) as board:
        (told,) = (await board.http.get("/types")).json()["items"]
        assert (told["pipeline"], told["follow_ups"]) == ("orders", ["letters", "posted", "tallied"])
        orders = (await board.http.get("/pipelines/orders")).json()
        assert (orders["type"], orders["after"], orders["follow_ups"]) == ("order", None, ["letters", "tallied"])
        posted = (await board.http.get("/pipelines/posted")).json()
        assert (posted["type"], posted["after"], posted["follow_ups"]) == ("order", "letters", [])
        rows = {
            row["name"]: row["needs_partition_key"]
            for row in await board.sql("select name, needs_partition_key from pipelines")
        }
        assert rows == {"orders": False, "letters": False, "posted": False, "tallied": False}
