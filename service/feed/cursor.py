"""What one listener to an event is sent: made from the log, from Postgres, and from what its client has read already.

It does no I/O: `service.feed.listeners` reads for it. See `service.feed.live_log` for the order of things.
"""

from collections.abc import Iterator
from typing import Any, Final

from msgspec import Raw, Struct, json

from service.feed.live_log import END, N_MAX, RANKS, Answered, Entry, Position, Stepped, Token, seq

START: Final[Position] = (0, 0)
NOTHING: Final = -1  # it is not known what the client has of a call


class Reply(Struct, frozen=True):
    step: str
    call: str
    call_id: str
    text: str


class Received(Struct):
    """What the client has of a call: so many characters of the reply to the call `call_id`."""

    call_id: str
    length: int
    complete: bool = False


class ResumeCursor:
    """`seen` and `rank`: up to where the client has read, position and status. `at`: what has been sent or passed."""

    def __init__(self, seen: Position = START, rank: int = 0) -> None:
        self.at: Position = START
        self.seen: Final = seen
        self._seen_rank: Final = rank
        self._steps: Final[set[Position]] = set()
        self._rank = 0
        self._may_have_text = False
        self._received: Final[dict[tuple[str, str], Received]] = {}

    def skip_to(self, position: Position) -> None:
        self.at = max(self.at, position)

    def resume(self) -> None:
        """The log has no more of what the client has read: where that went further, it is not known what it was."""
        claim, n = self.seen[0], self.seen[1] // 2 * 2
        if self.at < (claim, n):
            self._may_have_text = self._may_have_text or (self.at == START and claim > 1) or n > 0
            self.at, self._rank = self.seen, self._seen_rank

    def gap(self, position: Position) -> bool:
        """Whether what lies between here and `position` has to be asked for."""
        claim, n = self.at
        if position <= self.seen:
            # A log loses its beginning or its end.
            self._may_have_text = self._may_have_text or (self.at == START and position != (1, 2))
            return False
        return position > self.at and position not in ((claim, n + 2 - n % 2), (1, 2))

    def lacks_reply(self, position: Position, entry: Entry) -> bool:
        """Whether the stored reply has to be asked for."""
        if not isinstance(entry, Answered) or position <= max(self.at, self.seen):
            return False
        received = self._client_has(position, entry)
        return received is None or (received.call_id, received.length) != (entry.call_id, entry.length)

    def status(self, claim: int, status: str) -> Iterator[bytes]:
        """A status of a claim; of an older one, or one that was sent before, nothing."""
        rank = RANKS[status]
        if (claim, rank) <= (self.at[0], self._rank):
            return
        if claim > self.at[0]:
            self.at = (claim, 0)
        self._rank = rank
        if (claim, rank) > (self.seen[0], self._seen_rank):
            yield self._message("status", {"status": status})

    def entry(self, position: Position, entry: Entry) -> Iterator[bytes]:
        """An entry of the log, the next one that is there."""
        if position <= self.at:
            return
        if position[0] > self.at[0]:
            yield from self.status(position[0], "running")
        match entry:
            case Token():
                yield from self._token(position, entry)
            case Stepped():
                yield from self._step(position, entry)
            case Answered():
                received = self._received.get((entry.step, entry.call))
                if received is not None and (received.call_id, received.length) == (entry.call_id, entry.length):
                    received.complete = True
                self.skip_to(position)

    def stored(self, position: Position, fact: Stepped | Reply) -> Iterator[bytes]:
        """What Postgres has; nothing where the log had it."""
        if position[0] > self.at[0]:
            yield from self.status(position[0], "running")
        if isinstance(fact, Stepped):
            yield from self._step(position, fact)
            return
        received = self._client_has(position, fact)
        if position <= self.seen:
            self._received[fact.step, fact.call] = Received(fact.call_id, len(fact.text), complete=True)
            return
        known = received is not None and received.call_id == fact.call_id and received.length != NOTHING
        offset = received.length if received and known else 0
        self._received[fact.step, fact.call] = Received(fact.call_id, len(fact.text), complete=True)
        if known and offset == len(fact.text):
            self.skip_to(position)
            return
        token = Token(fact.step, fact.call, fact.call_id, offset, fact.text[offset:])
        yield from self._send(position, "token", token, anew=not offset)

    def end(self, claim: int, status: str, result: Raw | None) -> Iterator[bytes]:
        for (step, call), received in self._received.items():
            if not received.complete and received.length:
                yield self._message("restart", {"step": step, "call": call}, with_id=False)
        self.at, self._rank = (claim, N_MAX), END
        yield self._message("end", {"status": status, "result": result})

    def _client_has(self, position: Position, entry: Answered | Reply) -> Received | None:
        """Nothing where the last thing it has read is the restart that goes before this."""
        claim, n = self.seen
        return None if n % 2 and self.at < position == (claim, n + 1) else self._received.get((entry.step, entry.call))

    def _step(self, position: Position, step: Stepped) -> Iterator[bytes]:
        if position not in self._steps:
            self._steps.add(position)
            yield from self._send(position, "step", step)

    def _token(self, position: Position, token: Token) -> Iterator[bytes]:
        key = (token.step, token.call)
        received = self._received.get(key)
        if token.offset == 0:
            anew = self._may_have_text if received is None else received.call_id != token.call_id
            self._received[key] = Received(token.call_id, len(token.text))
            yield from self._send(position, "token", token, anew=anew)
        elif received is not None and (received.call_id, received.length) == (token.call_id, token.offset):
            received.length += len(token.text)
            yield from self._send(position, "token", token)
        else:  # something is missing: the stored reply will bring it
            self._received.setdefault(key, Received(token.call_id, NOTHING))
            self.skip_to(position)

    def _send(self, position: Position, event: str, entry: Stepped | Token, *, anew: bool = False) -> Iterator[bytes]:
        """Send what is at `position`, unless the client has read it; what comes too late for its position has no id."""
        in_order = position > self.at
        before = (position[0], position[1] - 1)
        if isinstance(entry, Token) and anew and position > self.seen != before:
            self.skip_to(before)
            yield self._message("restart", {"step": entry.step, "call": entry.call}, with_id=in_order)
        self.skip_to(position)
        if position > self.seen:
            yield self._message(event, _shown(entry), with_id=in_order)

    def _message(self, event: str, data: dict[str, Any], *, with_id: bool = True) -> bytes:
        head = f"id: {seq(self.at, self._rank)}\n" if with_id else ""
        return f"{head}event: {event}\ndata: ".encode() + json.encode(data) + b"\n\n"


def _shown(entry: Stepped | Token) -> dict[str, Any]:
    if isinstance(entry, Stepped):
        return {"step": entry.step, "state": entry.state, "ms": entry.ms}
    return {"step": entry.step, "call": entry.call, "offset": entry.offset, "text": entry.text}
