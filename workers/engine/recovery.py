"""When a model is back: one event tries it; once it has answered, or has room, those that wait are brought forward."""

from collections.abc import Callable, Mapping
from typing import Final

from service.resources import Connection
from workers.engine.claimed import SQL


class Recovery:
    """Looks at this worker's breakers and limits, `doors`, once a second; brings `pace` events forward at a time."""

    def __init__(self, doors: Callable[[], Mapping[str, str]], pace: int) -> None:
        self._doors: Final = doors
        self._pace: Final = pace
        self._seen: Mapping[str, str] = {}
        self._closed: Final[set[str]] = set()

    async def turn(self, connection: Connection) -> None:
        """Without this an event would wait out a time that has doubled, or was a guess."""
        states = self._doors()
        for name, state in states.items():
            if state != "closed":
                self._closed.discard(name)
            elif self._seen.get(name, "closed") != "closed":
                self._closed.add(name)
            if state == "half_open":
                await connection.fetchval(SQL["bring_forward"], name, 1)
            elif (
                name in self._closed and await connection.fetchval(SQL["bring_forward"], name, self._pace) < self._pace
            ):
                self._closed.discard(name)
        self._seen = states
