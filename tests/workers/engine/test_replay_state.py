"""A replay begins with the actor's state as it was before the event; where it can't, it says what it would do again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from msgspec import Struct

from schemas import Event
from service.cli import command_line
from service.core.settings import Settings
from tests.board import Board, board_on
from tests.keys import TOKEN
from tests.programs import program_of
from workers.kit import Pipeline, Retry, State
from workers.kit.run import CHEAP_MS

SLOW_S = CHEAP_MS * 4 / 1000


class Wrote(Event, tag="wrote", frozen=True):
    text: str


class Talk(Struct, frozen=True):
    turns: list[str] = []


class History(Struct, frozen=True):
    turns: list[str]


class Answer(Struct, frozen=True):
    text: str


class Chat:
    """A conversation whose answer is made of what was said before, and costs something; `broken`: its end fails."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.broken = False

    def flow(self) -> list[Any]:
        async def recall(event: Wrote, state: State[Talk]) -> History:
            self.ran.append("recall")
            return History(state.value.turns)

        async def answer(event: Wrote, history: History) -> Answer:
            self.ran.append("answer")
            await asyncio.sleep(SLOW_S)
            return Answer(f"{event.text} after {len(history.turns)}")

        async def conclude(answer: Answer, state: State[Talk]) -> str:
            self.ran.append("conclude")
            if self.broken:
                raise ValueError("broken")
            state.set(Talk([*state.value.turns, answer.text]))
            return answer.text

        return [recall, answer, conclude]


class Room:
    def __init__(self, board: Board, chat: Chat) -> None:
        self.board = board
        self.chat = chat

    async def say(self, text: str) -> str:
        event = await self.board.ended(await self.board.send("wrote", {"text": text}, partitionkey="ann"))
        self.chat.ran.clear()
        return str(event["event_id"])

    async def replay(self, event_id: str, **body: Any) -> httpx.Response:
        return await self.board.http.post(f"/events/{event_id}/replay", json=body)

    async def replayed(self, event_id: str, **body: Any) -> dict[str, Any]:
        response = await self.replay(event_id, **body)
        assert response.status_code == 202, response.text
        return await self.board.ended(event_id)

    async def turns(self) -> list[str] | None:
        states = (await self.board.http.get("/actors/ann")).json()["states"]
        return states["Talk"]["turns"] if "Talk" in states else None


@asynccontextmanager
async def chatting(settings: Settings) -> AsyncIterator[Room]:
    chat = Chat()
    pipeline = Pipeline(on=Wrote, flow=chat.flow(), retry=Retry(attempts=1))
    async with board_on(settings, program_of(settings, talk=pipeline)) as board:
        yield Room(board, chat)


BOTH = ["one after 0", "two after 1"]


@pytest.mark.parametrize(
    ("step", "ran"),
    [
        ("conclude", ["conclude"]),
        ("answer", ["answer", "conclude"]),
        ("recall", ["recall", "answer", "conclude"]),
        (None, []),
    ],
)
async def test_the_last_of_its_key_begins_before_itself(step: str | None, ran: list[str], settings: Settings) -> None:
    async with chatting(settings) as room:
        await room.say("one")
        last = await room.say("two")
        for run in (2, 3):
            event = await room.replayed(last, **{"from": step})
            assert (event["status"], event["run"], event["result"]) == ("succeeded", run, "two after 1")
            assert room.chat.ran == ran
            assert await room.turns() == BOTH, "the turn stands in the history once"
            room.chat.ran.clear()


async def test_the_first_of_its_key_begins_with_nothing(settings: Settings) -> None:
    async with chatting(settings) as room:
        first = await room.say("one")
        assert (await room.replayed(first, **{"from": "recall"}))["result"] == "one after 0"
        assert await room.turns() == ["one after 0"]


async def test_one_that_dies_has_left_nothing_and_is_replayed_to_its_end(settings: Settings) -> None:
    async with chatting(settings) as room:
        await room.say("one")
        last = await room.say("two")
        room.chat.broken = True
        assert (await room.replayed(last, **{"from": "conclude"}))["status"] == "dead"
        assert await room.turns() == ["one after 0"]
        room.chat.broken = False
        room.chat.ran.clear()
        assert (await room.replayed(last))["status"] == "succeeded"
        assert (room.chat.ran, await room.turns()) == (["conclude"], BOTH)


async def test_a_success_that_is_not_the_last_says_what_it_would_do_again(settings: Settings) -> None:
    async with chatting(settings) as room:
        first = await room.say("one")
        await room.say("two")
        response = await room.replay(first, **{"from": "conclude"})
        assert response.status_code == 409
        detail = response.json()["detail"]
        assert "is not the last of its key" in detail
        assert "do again, and pay for again: recall, answer. " in detail
        assert '"again": true' in detail
        response = await room.replay(first, **{"from": "recall"})
        assert "add to them a second time" in response.json()["detail"]
        assert (await room.board.show(first))["run"] == 1
        assert (room.chat.ran, await room.turns()) == ([], BOTH)

        again = await room.replayed(first, **{"from": "conclude", "again": True})
        assert (again["run"], again["result"], room.chat.ran) == (2, "one after 2", ["recall", "answer", "conclude"])
        assert await room.turns() == [*BOTH, "one after 2"]


async def test_nor_is_one_before_which_another_will_run(settings: Settings) -> None:
    async with chatting(settings) as room:
        first = await room.say("one")
        await room.board.sql(
            """insert into work (event_id, tenant, partition_key, mailbox_seq, status, due_at)
               values (gen_random_uuid(), 'default', 'ann', nextval('mailbox_seq'), 'scheduled', now() + '1 hour')"""
        )
        assert (await room.replay(first)).status_code == 409


async def test_nor_is_one_whose_state_an_older_release_wrote(settings: Settings) -> None:
    """That kept nothing of what was before."""
    async with chatting(settings) as room:
        first = await room.say("one")
        await room.board.sql("update states set set_by = null, before = null")
        assert (await room.replay(first)).status_code == 409
        assert (await room.replayed(first, again=True))["result"] == "one after 1"


async def test_nor_is_one_after_which_an_older_release_wrote(settings: Settings) -> None:
    """As that does: it knows nothing of what was before, and leaves it as it is."""
    async with chatting(settings) as room:
        first = await room.say("one")
        await room.board.sql(
            """update states set value = '{"turns":["one after 0","theirs"]}', event_id = gen_random_uuid(),
                                 written_at = clock_timestamp()"""
        )
        assert (await room.replay(first)).status_code == 409
        assert await room.turns() == ["one after 0", "theirs"]


async def test_two_dead_of_one_key_are_replayed_one_after_the_other(settings: Settings) -> None:
    """The second sees what the first has set, although nothing had changed when they were replayed together."""
    async with chatting(settings) as room:
        room.chat.broken = True
        dead = [await room.say(text) for text in ("one", "two")]
        room.chat.broken = False
        await room.board.http.post("/dead-letters/replay", json={"type": "wrote"})
        assert [(await room.board.ended(event))["result"] for event in dead] == BOTH
        assert room.chat.ran == ["conclude", "recall", "answer", "conclude"]
        assert await room.turns() == BOTH


async def test_the_command_line_says_so_and_takes_again(settings: Settings) -> None:
    async with chatting(settings) as room:
        first = await room.say("one")
        await room.say("two")
        line = ["replay", first, "--from", "conclude", "--url", str(room.board.http.base_url)]
        refused = await asyncio.to_thread(CliRunner(env={"CALLBOARD_API_KEY": TOKEN}).invoke, command_line({}), line)
        assert refused.exit_code != 0
        assert "do again, and pay for again: recall, answer" in refused.output
        taken = await asyncio.to_thread(
            CliRunner(env={"CALLBOARD_API_KEY": TOKEN}).invoke, command_line({}), [*line, "--again"]
        )
        assert (taken.exit_code, taken.output.split()) == (0, [first, "queued,", "run", "2"])
        assert (await room.board.ended(first))["result"] == "one after 2"
