"""What one follower of an event is told: made from the log, from Postgres, and from what its client has read already.

It does no I/O: `service.follow` reads for it. See `service.live` for the order of things.
"""

from collections.abc import Iterator
from typing import Any, Final

from msgspec import Raw, Struct, json

from service.live import END, N_MAX, RANKS, Answered, Place, Said, Stepped, Token, seq

START: Final[Place] = (0, 0)
NOTHING: Final = -1  # it is not known what the client has of a call


class Reply(Struct, frozen=True):
    step: str
    call: str
    made: str
    text: str


class Has(Struct):
    """What the client has of a call: so many characters of the reply to the call `made`."""

    made: str
    length: int
    whole: bool = False


class Story:
    """`seen` and `rank`: up to where the client has read, place and status. `at`: what has been told or passed."""

    def __init__(self, seen: Place = START, rank: int = 0) -> None:
        self.at: Place = START
        self.seen: Final = seen
        self._seen_rank: Final = rank
        self._steps: Final[set[Place]] = set()
        self._rank = 0
        self._blind = False
        self._has: Final[dict[tuple[str, str], Has]] = {}

    def skip_to(self, place: Place) -> None:
        self.at = max(self.at, place)

    def resume(self) -> None:
        """The log has no more of what the client has read: where that went further, it is not known what it was."""
        claim, n = self.seen[0], self.seen[1] // 2 * 2
        if self.at < (claim, n):
            self._blind = self._blind or (self.at == START and claim > 1) or n > 0
            self.at, self._rank = self.seen, self._seen_rank

    def hole(self, place: Place) -> bool:
        """Whether what lies between here and `place` has to be asked for."""
        claim, n = self.at
        if place <= self.seen:
            # A log loses its beginning or its end.
            self._blind = self._blind or (self.at == START and place != (1, 2))
            return False
        return place > self.at and place not in ((claim, n + 2 - n % 2), (1, 2))

    def lacks(self, place: Place, said: Said) -> bool:
        """Whether the stored reply has to be asked for."""
        if not isinstance(said, Answered) or place <= max(self.at, self.seen):
            return False
        has = self._client_has(place, said)
        return has is None or (has.made, has.length) != (said.made, said.length)

    def status(self, claim: int, status: str) -> Iterator[bytes]:
        """A status of a claim; of an older one, or one that was told before, nothing."""
        rank = RANKS[status]
        if (claim, rank) <= (self.at[0], self._rank):
            return
        if claim > self.at[0]:
            self.at = (claim, 0)
        self._rank = rank
        if (claim, rank) > (self.seen[0], self._seen_rank):
            yield self._message("status", {"status": status})

    def entry(self, place: Place, said: Said) -> Iterator[bytes]:
        """An entry of the log, the next one that is there."""
        if place <= self.at:
            return
        if place[0] > self.at[0]:
            yield from self.status(place[0], "running")
        match said:
            case Token():
                yield from self._token(place, said)
            case Stepped():
                yield from self._step(place, said)
            case Answered():
                has = self._has.get((said.step, said.call))
                if has is not None and (has.made, has.length) == (said.made, said.length):
                    has.whole = True
                self.skip_to(place)

    def stored(self, place: Place, fact: Stepped | Reply) -> Iterator[bytes]:
        """What Postgres has; nothing where the log had it."""
        if place[0] > self.at[0]:
            yield from self.status(place[0], "running")
        if isinstance(fact, Stepped):
            yield from self._step(place, fact)
            return
        has = self._client_has(place, fact)
        if place <= self.seen:
            self._has[fact.step, fact.call] = Has(fact.made, len(fact.text), whole=True)
            return
        known = has is not None and has.made == fact.made and has.length != NOTHING
        offset = has.length if has and known else 0
        self._has[fact.step, fact.call] = Has(fact.made, len(fact.text), whole=True)
        if known and offset == len(fact.text):
            self.skip_to(place)
            return
        token = Token(fact.step, fact.call, fact.made, offset, fact.text[offset:])
        yield from self._tell(place, "token", token, anew=not offset)

    def end(self, claim: int, status: str, result: Raw | None) -> Iterator[bytes]:
        for (step, call), has in self._has.items():
            if not has.whole and has.length:
                yield self._message("restart", {"step": step, "call": call}, with_id=False)
        self.at, self._rank = (claim, N_MAX), END
        yield self._message("end", {"status": status, "result": result})

    def _client_has(self, place: Place, said: Answered | Reply) -> Has | None:
        """Nothing where the last thing it has read is the restart that goes before this."""
        claim, n = self.seen
        return None if n % 2 and self.at < place == (claim, n + 1) else self._has.get((said.step, said.call))

    def _step(self, place: Place, step: Stepped) -> Iterator[bytes]:
        if place not in self._steps:
            self._steps.add(place)
            yield from self._tell(place, "step", step)

    def _token(self, place: Place, token: Token) -> Iterator[bytes]:
        key = (token.step, token.call)
        has = self._has.get(key)
        if token.offset == 0:
            anew = self._blind if has is None else has.made != token.made
            self._has[key] = Has(token.made, len(token.text))
            yield from self._tell(place, "token", token, anew=anew)
        elif has is not None and (has.made, has.length) == (token.made, token.offset):
            has.length += len(token.text)
            yield from self._tell(place, "token", token)
        else:  # something is missing: the stored reply will bring it
            self._has.setdefault(key, Has(token.made, NOTHING))
            self.skip_to(place)

    def _tell(self, place: Place, event: str, said: Stepped | Token, *, anew: bool = False) -> Iterator[bytes]:
        """Tell what is at `place`, unless the client has read it; what comes behind its place has no id."""
        in_order = place > self.at
        before = (place[0], place[1] - 1)
        if isinstance(said, Token) and anew and place > self.seen != before:
            self.skip_to(before)
            yield self._message("restart", {"step": said.step, "call": said.call}, with_id=in_order)
        self.skip_to(place)
        if place > self.seen:
            yield self._message(event, _shown(said), with_id=in_order)

    def _message(self, event: str, data: dict[str, Any], *, with_id: bool = True) -> bytes:
        head = f"id: {seq(self.at, self._rank)}\n" if with_id else ""
        return f"{head}event: {event}\ndata: ".encode() + json.encode(data) + b"\n\n"


def _shown(said: Stepped | Token) -> dict[str, Any]:
    if isinstance(said, Stepped):
        return {"step": said.step, "state": said.state, "ms": said.ms}
    return {"step": said.step, "call": said.call, "offset": said.offset, "text": said.text}
