"""How many bytes of bodies may be in memory: while Postgres is slow they wait there. Each caller has a share."""

from typing import Final, Literal

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

LARGE_MAX: Final = 64 << 20
BODY_SMALL: Final = 64 << 10
SMALL_MAX: Final = 16 << 20  # for bodies that have no more than BODY_SMALL yet: large ones take nothing of it

Full = Literal["this caller", "all"]


class Shares:
    """So many bytes. Of n callers that hold some each has one part of n + 1 at most, so that one is left for the next.
    What is alone always fits.
    """

    def __init__(self, most: int) -> None:
        self._most: Final = most
        self._by_caller: Final[dict[str, int]] = {}
        self.held = 0

    def take(self, caller: str, size: int, held_by_this: int = 0) -> Full | None:
        """So much more for one body, which holds `held_by_this`; else for whom there is no room."""
        is_alone = self.held == held_by_this
        mine = self._by_caller.get(caller, 0)
        callers = len(self._by_caller) + (caller not in self._by_caller)
        if not is_alone and mine + size > self._most // (callers + 1):
            return "this caller" if mine else "all"
        if not is_alone and self.held + size > self._most:
            return "all"
        self.held += size
        self._by_caller[caller] = mine + size
        return None

    def give_back(self, caller: str, size: int) -> None:
        self.held -= size
        left = self._by_caller.get(caller, 0) - size
        if left > 0:
            self._by_caller[caller] = left
        else:
            self._by_caller.pop(caller, None)


class BodyAllowance:
    """What came of each request's body, not what its head promises; all of it is let go when the request is over."""

    def __init__(self, most: int = LARGE_MAX, small_most: int = SMALL_MAX) -> None:
        self._large: Final = Shares(most)
        self._small: Final = Shares(small_most)

    @property
    def held(self) -> int:
        return self._large.held + self._small.held

    def take(self, request: Request, size: int) -> Full | None:
        """So much more of this request's body; else for whom there is no room."""
        caller, held, shares = _held(request.scope)
        wanted = self._small if held + size <= BODY_SMALL else self._large
        stays = shares is wanted
        if full := wanted.take(caller, size if stays else held + size, held if stays else 0):
            return full
        if shares is not None and not stays:
            shares.give_back(caller, held)
        request.scope["state"]["body_allowance"] = (caller, held + size, wanted)
        return None

    def release(self, scope: Scope) -> None:
        """The request is over."""
        caller, held, shares = _held(scope)
        if shares is not None:
            shares.give_back(caller, held)
        scope["state"].pop("body_allowance", None)


def _held(scope: Scope) -> tuple[str, int, Shares | None]:
    held: tuple[str, int, Shares] | None = scope["state"].get("body_allowance")
    return held or (caller_of(scope), 0, None)


def caller_of(scope: Scope) -> str:
    """The prefix of the caller's key; before that is known, the caller's address."""
    caller = scope["state"].get("caller")
    if caller is not None:
        return f"key {caller.key.prefix}"
    return f"address {(scope.get('client') or ('',))[0]}"


def with_bodies_released(app: ASGIApp) -> ASGIApp:
    """After every request, whoever read its body, its bytes are released."""

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        finally:
            if scope["type"] == "http":
                scope["state"]["app_state"].body_allowance.release(scope)

    return answered
