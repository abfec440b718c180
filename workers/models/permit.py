"""The right to make one call, from where it is asked for until it goes back."""

from contextlib import nullcontext
from typing import Protocol

from msgspec import Struct

from service.core.metrics import Waited
from service.core.time_limit import our_wait


class Permit(Struct, eq=False):
    """The right to make one call, for about so many `tokens`; `used`: those it took, None where nobody knows."""

    id: str
    tokens: int
    most: int
    begun: float
    is_sent: bool = False
    used: int | None = None


class PermitGiver(Protocol):
    """Who gives permits and takes them back."""

    async def enter(self, most_tokens: int) -> Permit: ...

    def leave(self, permit: Permit) -> None: ...


class Permission:
    """A permit from where it is asked for until it goes back."""

    __slots__ = ("_limiter", "_most_tokens", "_permit", "_waited")

    def __init__(self, limiter: PermitGiver, most_tokens: int, waited: Waited | None) -> None:
        self._limiter, self._most_tokens, self._waited = limiter, most_tokens, waited

    async def __aenter__(self) -> Permit:
        with our_wait(), self._waited or nullcontext():
            self._permit = await self._limiter.enter(self._most_tokens)
        return self._permit

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        self._limiter.leave(self._permit)
