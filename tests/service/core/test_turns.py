"""Turns: what is free is anybody's, a part is left for the next, and who has least comes first."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core import turns
from service.core.errors import TooMany, Unavailable
from service.core.metrics import Meters
from service.core.turns import Turns

SOON_S = 0.02


def made(most: int, wait_s: float = SOON_S, meters: Meters | None = None) -> Turns:
    return Turns("searches", most, wait_s, meters or Meters())


async def take(stack: AsyncExitStack, own: Turns, caller: str, count: int) -> None:
    for _ in range(count):
        await stack.enter_async_context(own.turn(caller))


async def test_one_alone_leaves_a_part_for_the_next() -> None:
    meters = Meters()
    own = made(10, meters=meters)
    async with AsyncExitStack() as stack:
        await take(stack, own, "a", 8)
        with pytest.raises(TooMany, match="more of your searches"):
            await take(stack, own, "a", 1)
        await take(stack, own, "b", 2)
        with pytest.raises(Unavailable, match="as many searches as there may be") as refused:
            await take(stack, own, "c", 1)
        assert not isinstance(refused.value, TooMany)
    assert meters.snapshot()["callboard_refused_total"] == [
        (("searches", "caller"), [1.0]),
        (("searches", "all"), [1.0]),
    ]


async def test_who_has_least_comes_next() -> None:
    """A caller who came first with much: what it gives back goes to the other, until both have half."""
    own = made(10, wait_s=10)
    come: list[str] = []
    enough = asyncio.Event()

    async def one(caller: str) -> None:
        async with own.turn(caller):
            come.append(caller)
            await enough.wait()

    async with AsyncExitStack() as held:
        await take(held, own, "a", 8)
        waiting = [asyncio.create_task(one(caller)) for caller in "aaaaabbbbbb"]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert come == ["b", "b"]
    for _ in range(3):  # all eight of the first are given back by now
        await asyncio.sleep(0)
    assert (come.count("a"), come.count("b")) == (5, 5)
    enough.set()
    await asyncio.gather(*waiting)
    assert sorted(come) == sorted("aaaaabbbbbb")


async def test_one_of_one_is_anybodys() -> None:
    for most in (1, 2, 3):
        async with AsyncExitStack() as stack:
            await take(stack, made(most), "a", 1)


async def test_a_caller_waits_for_no_more_than_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "WAITING_MAX", 3)
    own = made(1, wait_s=10)
    async with AsyncExitStack() as stack:
        await take(stack, own, "a", 1)
        waiting = [asyncio.create_task(take(stack, own, "a", 1)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(TooMany):
            await take(stack, own, "a", 1)
        for each in waiting:
            each.cancel()
        await asyncio.wait(waiting)


async def test_who_goes_when_a_turn_comes_takes_none_of_it_along() -> None:
    own = made(1, wait_s=10)
    stack = AsyncExitStack()
    await take(stack, own, "a", 1)
    gone, stays = [asyncio.create_task(take(stack, own, "b", 1)) for _ in range(2)]
    await asyncio.sleep(0)
    gone.cancel()
    await stack.pop_all().aclose()  # before who was cancelled has run
    await stays
    await asyncio.wait([gone])
    assert gone.cancelled()
    await stack.aclose()
    assert (own._held, own._waiting) == ({}, {})


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["held", "left", "cancelled"])), max_size=40),
)
async def test_no_turn_is_lost_and_none_is_given_twice(most: int, asked: list[tuple[str, str]]) -> None:
    own = made(most, wait_s=10)
    now = 0

    async def one(caller: str, enough: asyncio.Event) -> None:
        nonlocal now
        async with own.turn(caller):
            now += 1
            assert now <= most
            try:
                await enough.wait()
            finally:
                now -= 1

    tasks = []
    for caller, end in asked:
        enough = asyncio.Event()
        tasks.append((asyncio.create_task(one(caller, enough)), enough))
        await asyncio.sleep(0)
        if end == "left":
            tasks[0][1].set()
        elif end == "cancelled":
            tasks[len(tasks) // 2][0].cancel()
    for _, enough in tasks:
        enough.set()
    await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)
    assert (own._held, own._waiting) == ({}, {})


async def test_where_nothing_moves_it_is_no_callers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has the share is told 503, too. Where turns end in between it is the share."""
    monkeypatch.setattr(turns, "STILL_S", SOON_S)
    own = made(10, wait_s=2 * SOON_S)
    async with AsyncExitStack() as stack:
        await take(stack, own, "a", 8)
        with pytest.raises(Unavailable, match="has ended for") as refused:
            await take(stack, own, "a", 1)
        assert not isinstance(refused.value, TooMany)
        waiting = asyncio.create_task(take(stack, own, "a", 1))
        await asyncio.sleep(1.5 * SOON_S)
        async with own.turn("b"):
            pass
        with pytest.raises(TooMany):
            await waiting
