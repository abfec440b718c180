"""A child event is said with its parent's end, once: over retry, takeover, replay, and a claim that was lost."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from msgspec import Raw, Struct
from msgspec.structs import replace

from schemas import Event
from schemas.outcome import Done
from service.core.servers import connect
from service.core.settings import Settings
from service.core.supervise import end
from tests.board import Board, board_on
from tests.eventually import eventually
from tests.programs import program_of
from workers.engine.claim import SQL, Claimed, claimed
from workers.engine.settle import Ending, Settler
from workers.kit import Pipeline, Retry, Run
from workers.kit.memory import Child, Facts
from workers.kit.run import CHEAP_MS

QUICK = Retry(attempts=2, base_s=0.02, cap_s=0.05)
SLOW_S = CHEAP_MS * 4 / 1000
WORKER = UUID(int=1)


class Order(Event, tag="order", frozen=True):
    fails: int = 0


class Shipped(Event, tag="shipped", frozen=True):
    n: int = 0


class Said(Struct, frozen=True):
    n: int


async def ship(event: Shipped) -> Said:
    return Said(event.n)


def ordering(*flow: Any) -> dict[str, Pipeline]:
    return {"orders": Pipeline(on=Order, flow=list(flow), retry=QUICK), "shipping": Pipeline(on=Shipped, flow=[ship])}


async def children_of(board: Board, parent: str) -> list[dict[str, Any]]:
    """Oldest first."""
    listed = (await board.http.get("/events", params={"source": f"/events/{parent}"})).json()["items"]
    return list(reversed(listed))


async def test_a_child_names_its_parent_and_what_it_inherits(settings: Settings) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    later = datetime.now(UTC) + timedelta(days=1)

    async def say(run: Run, event: Order) -> Said:
        for n in range(2):
            run.emit(Shipped(n), key=f"k{n}")
        run.emit(Shipped(2), due_at=later)
        return Said(2)

    async with board_on(settings, program_of(settings, **ordering(say))) as board:
        parent = await board.send("order", {}, traceparent=trace)
        assert "parent" not in await board.ended(parent)
        children = await children_of(board, parent)
        assert [(child["id"], child["partitionkey"] if n < 2 else None) for n, child in enumerate(children)] == [
            ("1/say/1", "k0"),
            ("1/say/2", "k1"),
            ("1/say/3", None),
        ]
        first = await board.ended(children[0]["event_id"])
        assert (first["parent"], first["traceparent"], first["result"]) == (parent, trace, {"n": 0})
        assert (children[2]["status"], datetime.fromisoformat(children[2]["dueat"])) == ("scheduled", later)
        page = (await board.http.get(f"/ui/events/{first['event_id']}")).text
        assert f'href="/ui/events/{parent}"' in page


async def test_a_child_that_is_due_soon_runs_then(settings: Settings) -> None:
    async def say(run: Run, event: Order) -> None:
        run.emit(Shipped(1), key="k", due_at=datetime.now(UTC) + timedelta(seconds=1))

    async with board_on(settings, program_of(settings, **ordering(say))) as board:
        parent = await board.send("order", {})
        await board.ended(parent)
        (child,) = await children_of(board, parent)
        ended = await board.ended(child["event_id"])
        started, due = (datetime.fromisoformat(ended[name]) for name in ("started_at", "dueat"))
        assert due <= started


async def test_a_failed_try_says_nothing_and_a_retry_says_it_once(settings: Settings) -> None:
    fails = [True]
    go_on = asyncio.Event()

    async def cheap(run: Run, event: Order) -> Said:
        run.emit(Shipped(1))
        return Said(1)

    async def costly(run: Run, said: Said) -> None:
        run.emit(Shipped(2))
        await asyncio.sleep(SLOW_S)

    async def stumble(run: Run, event: Order) -> None:
        run.emit(Shipped(3))
        if fails.pop() if fails else False:
            raise ValueError("not yet")
        await go_on.wait()

    async with board_on(settings, program_of(settings, **ordering(cheap, costly, stumble))) as board:
        parent = await board.send("order", {})
        await eventually(lambda: _tried(board, parent, 1))
        assert await children_of(board, parent) == []
        go_on.set()
        await board.ended(parent)
        said = [child["id"] for child in await children_of(board, parent)]
        assert said == ["1/cheap/1", "1/costly/1", "1/stumble/1"]


async def _tried(board: Board, event_id: str, times: int) -> bool:
    return len(await board.sql("select 1 from attempts where event_id = $1", UUID(event_id))) >= times


async def test_a_dead_event_says_nothing(settings: Settings) -> None:
    async def say(run: Run, event: Order) -> None:
        run.emit(Shipped(1))

    async def fail(event: Order) -> None:
        raise ValueError("never")

    async with board_on(settings, program_of(settings, **ordering(say, fail))) as board:
        parent = await board.send("order", {})
        assert (await board.ended(parent))["status"] == "dead"
        assert await children_of(board, parent) == []


async def test_a_replay_says_again_only_what_it_runs_again(settings: Settings) -> None:
    """Also of a step that cost nothing: it said something, so it is remembered."""

    async def cheap(run: Run, event: Order) -> Said:
        run.emit(Shipped(run.number))
        return Said(run.number)

    async with board_on(settings, program_of(settings, **ordering(cheap))) as board:
        parent = await board.send("order", {})
        await board.ended(parent)
        for run, body, expected in ((2, {}, ["1/cheap/1"]), (3, {"from": "cheap"}, ["1/cheap/1", "3/cheap/1"])):
            await board.http.post(f"/events/{parent}/replay", json=body)
            assert (await board.ended(parent))["run"] == run
            assert [child["id"] for child in await children_of(board, parent)] == expected


async def test_a_takeover_says_it_once(settings: Settings) -> None:
    held, tries = asyncio.Event(), []

    async def say(run: Run, event: Order) -> Said:
        run.emit(Shipped(1))
        await asyncio.sleep(SLOW_S)
        return Said(1)

    async def hang(said: Said) -> None:
        tries.append(1)
        if len(tries) == 1:
            held.set()
            await asyncio.Event().wait()

    async with board_on(settings, program_of(settings, **ordering(say, hang)), workers=2) as board:
        parent = await board.send("order", {})
        async with asyncio.timeout(10):
            await held.wait()
        (row,) = await board.sql("select worker from work where event_id = $1", UUID(parent))
        mine = next(worker for worker in board.workers if worker.lease.worker == row["worker"])
        await board.sql("update workers set state = 'dead', lease_until = '-infinity' where worker = $1", row["worker"])
        mine.executor.drop_all()
        assert (await board.ended(parent, 30))["status"] == "succeeded"
        assert [child["id"] for child in await children_of(board, parent)] == ["1/say/1"]


async def test_a_child_stands_behind_what_waits_in_its_mailbox(settings: Settings) -> None:
    first, go_on = asyncio.Event(), asyncio.Event()

    async def say(run: Run, event: Order) -> None:
        run.emit(Shipped(1), key="k")
        first.set()
        await go_on.wait()

    async with board_on(settings, program_of(settings, **ordering(say))) as board:
        parent = await board.send("order", {}, partitionkey="k")
        async with asyncio.timeout(10):
            await first.wait()
        waiting = await board.send("shipped", {"n": 0}, partitionkey="k")
        go_on.set()
        await board.ended(parent)
        (child,) = await children_of(board, parent)
        ended = await board.ended(child["event_id"])
        assert (await board.show(waiting))["finished_at"] < ended["started_at"]


async def test_a_child_that_postgres_refuses_fails_its_parent_alone(settings: Settings) -> None:
    async def say(run: Run, event: Order) -> None:
        run.emit(Shipped(event.fails))

    async with board_on(settings, program_of(settings, **ordering(say))) as board:
        await board.sql("alter table events add constraint no_13 check (type <> 'shipped' or data ->> 'n' <> '13')")
        sent = [await board.send("order", {"fails": n}) for n in (12, 13, 14)]
        ended = [await board.ended(each) for each in sent]
        assert [each["status"] for each in ended] == ["succeeded", "dead", "succeeded"]
        assert "no_13" in ended[1]["error"]["message"]
        assert [len(await children_of(board, each)) for each in sent] == [1, 0, 1]


async def test_a_lost_claim_writes_neither_children_nor_state_nor_memory(settings: Settings) -> None:
    """Also where both claims end in one batch, as in a worker that lost its lease and claimed the event anew."""
    async with board_on(settings, program_of(settings, **ordering()), workers=0) as board:
        event_id = await board.send("order", {}, partitionkey="k")

        async def both(connection: Any) -> tuple[Claimed, Claimed]:
            (old,) = await connection.fetch(SQL["claim"], [UUID(event_id)], WORKER, 0, 200)
            await connection.execute("update work set status = 'queued'")
            (new,) = await connection.fetch(SQL["claim"], [UUID(event_id)], WORKER, 0, 200)
            return claimed(old, WORKER), claimed(new, WORKER)

        old, new = await _with_connection(settings, both)
        notified: list[UUID] = []
        settler = Settler(settings, notified.append, _no_alarm)
        endings = [_ending(each, text) for each, text in ((old, "old"), (new, "new"))]
        told = [asyncio.create_task(settler.settle(ending, 10)) for ending in endings]
        await asyncio.sleep(0)
        running = asyncio.create_task(_run(settler))
        assert await asyncio.gather(*told) == [False, True]
        again = replace(endings[1], claimed=replace(new, claim=new.claim + 1))
        assert await settler.settle(again, 10) is False
        await end([running])
        assert [(child["id"]) for child in await children_of(board, event_id)] == ["1/new/1"]
        assert [row["value"] for row in await board.sql("select value from states")] == ['{"by":"new"}']
        assert len(notified) == 1


def _ending(each: Claimed, text: str) -> Ending:
    child = Child(f"1/{text}/1", "shipped", None, None, Raw(b'{"n":1}'))
    facts = Facts(children=[child], new_states={"Track": Raw(b'{"by":"%s"}' % text.encode())})
    return Ending(each, Done(b"null"), "orders", facts)


async def _run(settler: Settler) -> None:
    await settler.run()


async def _no_alarm(_: float) -> None:
    return None


async def _with_connection(settings: Settings, work: Callable[[Any], Awaitable[Any]]) -> Any:
    connection = await connect(settings, "test")
    try:
        return await work(connection)
    finally:
        await connection.close()


async def test_many_children_are_one_transaction(settings: Settings) -> None:
    async def say(run: Run, event: Order) -> None:
        for n in range(event.fails):
            run.emit(Shipped(n), key=f"k{n % 50}")

    async with board_on(settings, program_of(settings, **ordering(say))) as board:
        enough, more = await board.send("order", {"fails": 1000}), await board.send("order", {"fails": 1001})
        assert (await board.ended(enough))["status"] == "succeeded"
        dead = await board.ended(more)
        assert (dead["status"], dead["attempts"]) == ("dead", 1)
        assert "one event may emit 1000 events" in dead["error"]["message"]
        (count,) = await board.sql("select count(*) as n from events where parent = $1", UUID(enough))
        assert count["n"] == 1000
