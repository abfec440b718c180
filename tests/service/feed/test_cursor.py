"""What a listener is sent: any cut, any loss of the log, any position to come again give the same text."""

from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from service.feed.cursor import START, Reply, ResumeCursor
from service.feed.live_log import Answered, Entry, Position, Stepped, Token, parse_seq
from tests.sse import Client, Heard

STEPS: Final = ("a", "b")
Log = list[tuple[Position, Entry]]


class History(Struct):
    """The log of an event as it was written, and what Postgres has in the end."""

    log: Log
    replies: list[tuple[Position, Reply]]
    steps: list[tuple[Position, Stepped]]
    claims: int

    @property
    def texts(self) -> dict[str, str]:
        return {reply.step: reply.text for _, reply in self.replies}


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Some claims that are lost with calls half streamed, at last one that ends; calls of two branches, interleaved."""
    log: Log = []
    replies: dict[str, tuple[Position, Reply]] = {}
    steps: list[tuple[Position, Stepped]] = []
    claims = draw(st.integers(1, 3))
    for claim in range(1, claims + 1):
        left = {
            step: draw(st.lists(st.text("xyzä😀", min_size=1, max_size=4), min_size=1, max_size=5)) for step in STEPS
        }
        asked, offsets = [step for step in STEPS if step not in replies], dict.fromkeys(STEPS, 0)
        complete = {step: "".join(left[step]) for step in STEPS}
        lost_after = None if claim == claims else draw(st.integers(int(claim == 1), 12))
        n = 0
        while asked and (lost_after is None or n // 2 < lost_after):
            n += 2
            step, call_id = draw(st.sampled_from(asked)), f"{claim}"
            if left[step]:
                text = left[step].pop(0)
                log.append(((claim, n), Token(step, "c", call_id, offsets[step], text)))
                offsets[step] += len(text)
                continue
            asked.remove(step)
            replies[step] = ((claim, n), Reply(step, "c", call_id, complete[step]))
            log.append(((claim, n), Answered(step, "c", call_id, len(complete[step]))))
            steps.append(((claim, n + 2), Stepped(step, "done", 1.0)))
            log.append(steps[-1])
            n += 2
    return History(log, sorted(replies.values(), key=lambda each: each[0]), steps, claims)


def sent(history: History, log: Log, cursor: ResumeCursor) -> Iterator[bytes]:
    """One connection to the end, as `service.feed.listeners` drives it, with what there is of the log."""
    for position, entry in log:
        if position > cursor.seen:
            cursor.resume()
        if cursor.gap(position):
            yield from _filled(history, cursor, position)
        if cursor.lacks_reply(position, entry):
            for there, reply in history.replies:
                if there == position:
                    yield from cursor.stored(there, reply)
        yield from cursor.entry(position, entry)
    cursor.resume()
    yield from _filled(history, cursor, (history.claims + 1, 0), complete=True)
    yield from cursor.end(history.claims, "succeeded", None)


def _filled(history: History, cursor: ResumeCursor, before: Position, *, complete: bool = False) -> Iterator[bytes]:
    after = START if complete else max(cursor.at, cursor.seen)
    facts: list[tuple[Position, Stepped | Reply]] = [reply for reply in history.replies if after < reply[0] < before]
    facts += [step for step in history.steps if max(after, cursor.seen) < step[0] < before]
    for position, fact in sorted(facts, key=lambda each: each[0]):
        yield from cursor.stored(position, fact)


def heard(message: bytes) -> Heard:
    from msgspec import json

    fields = dict(line.split(": ", 1) for line in message.decode().strip().split("\n"))
    return Heard(fields["event"], json.decode(fields["data"]), fields.get("id", ""))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_way_to_the_end_gives_the_stored_replies(data: st.DataObject) -> None:
    history = data.draw(histories())
    client, log = Client("e"), _with_holes(data, history.log)
    for most in [*data.draw(st.lists(st.integers(1, 6), max_size=8)), None]:
        log = log[data.draw(st.integers(0, len(log))) if data.draw(st.booleans()) else 0 :]  # Redis forgets
        _connect(history, log, client, most)
    assert {step: text for (step, _), text in client.texts.items() if text} == history.texts


@settings(max_examples=150, deadline=None)
@given(histories(), st.lists(st.integers(1, 5), max_size=30))
def test_with_a_whole_log_each_thing_is_told_once_in_order(history: History, cuts: list[int]) -> None:
    """The same as to a client that was never cut off."""
    unbroken, broken = Client("e"), Client("e")
    _connect(history, history.log, unbroken, None)
    for most in cuts:
        if not broken.over:
            _connect(history, history.log, broken, most)
    if not broken.over:
        _connect(history, history.log, broken, None)
    numbers = [int(message.id) for message in broken.heard if message.id]
    assert numbers == sorted(set(numbers))
    named = [message for message in broken.heard if message.id]
    assert named == [message for message in unbroken.heard if message.id]
    assert all(text for text in accumulate(unbroken.texts.values()))


def _connect(history: History, log: Log, client: Client, most: int | None) -> None:
    if client.over:
        return
    cursor = ResumeCursor(*parse_seq(int(client.last))) if client.last else ResumeCursor()
    for n, message in enumerate(sent(history, log, cursor), 1):
        client.take(heard(message))
        if n == most:
            return


def _with_holes(data: st.DataObject, log: Log) -> Log:
    """Some of it never came to Redis."""
    gone = data.draw(st.sets(st.integers(0, max(0, len(log) - 1)), max_size=3))
    return [entry for n, entry in enumerate(log) if n not in gone]
