"""A resource is opened once, by a task of its own, and never hangs anybody."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.core.errors import Outage
from tests.eventually import eventually
from workers.kit import resources
from workers.kit.resources import Resources, open_resources


class Thing:
    """What is opened here."""


async def test_concurrent_first_uses_are_one_opening() -> None:
    opened: list[Thing] = []

    @asynccontextmanager
    async def open_thing() -> AsyncIterator[Thing]:
        await asyncio.sleep(0)
        opened.append(Thing())
        yield opened[-1]

    async with open_resources() as held:
        found = await asyncio.gather(*(held.get(open_thing) for _ in range(5)))
        assert all(each is opened[0] for each in found)
        assert held.is_one(opened[0])
        assert not held.is_one(Thing())


async def test_who_stops_waiting_does_not_cut_the_opening() -> None:
    go_on = asyncio.Event()

    @asynccontextmanager
    async def open_thing() -> AsyncIterator[Thing]:
        await go_on.wait()
        yield Thing()

    async with open_resources() as held:
        first, second = (asyncio.create_task(held.get(open_thing)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        go_on.set()
        assert isinstance(await second, Thing)


async def test_an_opening_that_hangs_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "OPEN_S", 0.05)

    @asynccontextmanager
    async def open_never() -> AsyncIterator[Thing]:
        await asyncio.Event().wait()
        yield Thing()

    async with open_resources() as held:
        with pytest.raises(Outage, match=r"open_never can't be opened: it took too long"):
            await held.get(open_never)


async def test_a_closing_that_hangs_is_ended_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resources, "CLOSE_S", 0.05)

    @asynccontextmanager
    async def open_thing() -> AsyncIterator[Thing]:
        yield Thing()
        await asyncio.Event().wait()

    async with open_resources() as held:
        await held.get(open_thing)
    assert "open_thing was not closed well: it took too long" in caplog.text


async def test_one_that_has_ended_by_itself_is_opened_anew(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    breaks = asyncio.Event()

    @asynccontextmanager
    async def open_thing() -> AsyncIterator[Thing]:
        async def watch() -> None:
            await breaks.wait()
            raise OSError("it broke")

        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch())
            yield Thing()
            watching.cancel()

    held = Resources()
    first = await held.get(open_thing)
    breaks.set()

    async def anew() -> bool:
        return await held.get(open_thing) is not first

    await eventually(anew)
    await held.close()
