"""One actor, one event at a time, in the order of acceptance."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import asyncpg
from msgspec import Struct

import sql
from schemas import Event
from schemas.envelope import Attributes, Incoming
from schemas.identity import uuid7
from service.core.servers import connect
from service.core.settings import Settings
from service.core.supervise import end
from service.intake.store import Store
from tests.board import Board, board_on
from tests.eventually import eventually
from tests.programs import event_type, program_of
from workers.kit import Pipeline, Retry, Run

ENGINE = sql.queries("claim")
STORE = sql.queries("store")
WORKER = UUID(int=1)


class Noted(Event, tag="noted", frozen=True):
    n: int
    fails: int = 0


class Line(Struct, frozen=True):
    key: str
    n: int
    worker: str


def incoming(n: int, key: str | None) -> Incoming:
    event_id = uuid7()
    data = b'{"n":%d,"fails":0}' % n
    return Incoming(event_id, "/test", str(event_id), "noted", key, None, Attributes(), data)


def columns(each: Incoming) -> Sequence[Any]:
    row = (
        each.event_id,
        "default",
        each.source,
        each.id,
        each.type,
        each.partitionkey,
        "{}",
        each.data.decode(),
        None,
        None,
        None,
        None,
        None,
    )
    return [[value] for value in row]


async def claim(connection: asyncpg.Connection, *ids: UUID) -> list[UUID]:
    return [row["event_id"] for row in await connection.fetch(ENGINE["claim"], list(ids), WORKER, 0, 200)]


async def test_a_place_drawn_first_but_committed_late_lets_nobody_pass(settings: Settings) -> None:
    """The interleaving that breaks a plain sequence: A draws its place, B commits, then A commits."""
    first, second = await connect(settings, "a"), await connect(settings, "b")
    try:
        a, b = incoming(1, "k"), incoming(2, "k")
        transaction = first.transaction()
        await transaction.start()
        await first.execute(STORE["lock_mailboxes"], ["default"], ["k"])
        await first.fetch(STORE["accept"], *columns(a))

        async def accept_b() -> None:
            async with second.transaction():
                await second.execute(STORE["lock_mailboxes"], ["default"], ["k"])
                await second.fetch(STORE["accept"], *columns(b))

        late = asyncio.create_task(accept_b())
        await eventually(lambda: _waits_for_a_lock(settings))  # B can't even draw its place before A has committed
        assert not late.done()
        await transaction.commit()
        await late
        places = {
            row["event_id"]: row["mailbox_seq"] for row in await first.fetch("select event_id, mailbox_seq from work")
        }
        assert places[a.event_id] < places[b.event_id]
        assert await claim(first, a.event_id, b.event_id) == [a.event_id]
        assert await claim(second, b.event_id) == []
    finally:
        await first.close()
        await second.close()


async def _waits_for_a_lock(settings: Settings) -> bool:
    connection = await connect(settings, "look")
    try:
        waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
        return bool(await connection.fetchval(waiting))
    finally:
        await connection.close()


async def test_two_batches_of_the_same_events_neither_wait_nor_deadlock(settings: Settings) -> None:
    first, second = await connect(settings, "a"), await connect(settings, "b")
    try:
        events = [incoming(n, None) for n in range(50)]
        for each in events:
            await first.fetch(STORE["accept"], *columns(each))
        ids = [event.event_id for event in events]
        async with asyncio.timeout(10):
            claims = await asyncio.gather(claim(first, *ids), claim(second, *reversed(ids)))
        assert sorted([*claims[0], *claims[1]]) == sorted(ids)
    finally:
        await first.close()
        await second.close()


async def test_events_without_a_key_take_no_lock(settings: Settings) -> None:
    """The bucket of every key is held elsewhere: unkeyed events are stored all the same."""
    holder = await connect(settings, "holder")
    store = Store(settings, {"noted": event_type(Noted)})
    running = asyncio.create_task(store.run())
    try:
        async with holder.transaction():
            await holder.execute("select pg_advisory_xact_lock(7, bucket) from generate_series(0, 255) as b (bucket)")
            assert (await store.accept(incoming(1, None))).status == "queued"
    finally:
        await end([running])
        await holder.close()


async def test_a_mailbox_is_worked_off_in_order_over_workers_and_retries(settings: Settings) -> None:
    lines: list[Line] = []
    busy: set[str] = set()

    async def note(run: Run, event: Noted) -> Line:
        assert run.key is not None
        assert run.key not in busy, "two events of one key at once"
        busy.add(run.key)
        try:
            await asyncio.sleep(0)
            if run.attempt <= event.fails:
                raise ValueError("not yet")
            line = Line(run.key, event.n, str(run._deps.claim))
            lines.append(line)
            return line
        finally:
            busy.discard(run.key)

    quick = Retry(attempts=5, base_s=0.02, cap_s=0.05)
    program = program_of(settings, noted=Pipeline(on=Noted, flow=[note], retry=quick))
    async with board_on(settings, program, workers=3) as board:
        keys = [f"k{n}" for n in range(4)]
        last = [
            await board.send("noted", {"n": n, "fails": int(n % 3 == 0)}, partitionkey=key)
            for n in range(12)
            for key in keys
        ]
        for each in last:
            assert (await board.ended(each, 30))["status"] == "succeeded"
    for key in keys:
        assert [line.n for line in lines if line.key == key] == list(range(12))


async def test_a_mailbox_shows_what_holds_it_up(settings: Settings) -> None:
    async def fail(event: Noted) -> None:
        raise ValueError("never")

    patient = Retry(attempts=5, base_s=1000, cap_s=1000)
    program = program_of(settings, noted=Pipeline(on=Noted, flow=[fail], retry=patient))
    async with board_on(settings, program) as board:
        first = await board.send("noted", {"n": 1}, partitionkey="a/b")
        await board.send("noted", {"n": 2}, partitionkey="a/b")
        shown = await eventually(lambda: _held_up(board, "a/b"))
        assert (shown["key"], shown["mailbox"], shown["in_hand"]["event_id"]) == ("a/b", 2, first)
        assert shown["in_hand"]["cause"] == "never"
        # Cancelling it lets the next one on.
        await board.http.post(f"/events/{first}/cancel")
        after = await eventually(lambda: _held_up(board, "a/b"))
        assert (after["mailbox"], after["in_hand"]["attempts"]) == (1, 1)


async def _held_up(board: Board, key: str) -> Any:
    shown = (await board.http.get(f"/actors/{key}")).json()
    return shown if shown["in_hand"] and shown["in_hand"]["status"] == "scheduled" else None


async def test_a_delayed_event_takes_its_place_when_it_is_due(settings: Settings) -> None:
    seen: list[int] = []

    async def note(run: Run, event: Noted) -> None:
        seen.append(event.n)

    program = program_of(settings, noted=Pipeline(on=Noted, flow=[note]))
    async with board_on(settings, program) as board:
        delayed = await board.send("noted", {"n": 1}, partitionkey="k", dueat="2099-01-01T00:00:00Z")
        await board.ended(await board.send("noted", {"n": 2}, partitionkey="k"))  # it is not held up by the delayed one
        await board.sql("update work set due_at = now()")
        assert (await board.ended(delayed))["status"] == "succeeded"
        assert seen == [2, 1]
