"""When a model is back: one event tries it; once it has answered, or has room, those that wait are brought forward.

So are, when a worker starts, those that wait for the next day's budget: perhaps it starts with a larger one.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

import sql
from service.core.servers import Connection
from workers.engine.retry import BUDGET

SQL: Final = {**sql.queries("resume"), **sql.queries("lease")}


class Resumer:
    """Looks at this worker's breakers and limits, `states`, once a second; brings `pace` events forward at a time."""

    def __init__(self, states: Callable[[], Mapping[str, str]], pace: int) -> None:
        self._states: Final = states
        self._pace: Final = pace
        self._seen: Mapping[str, str] = {}
        self._closed: Final[set[str]] = set()
        self._begun: datetime | None = None
        self._richer = True

    async def turn(self, connection: Connection) -> None:
        """Without this an event would wait out a time that has doubled, or was a guess."""
        states = self._states()
        self._begun = self._begun or await connection.fetchval(SQL["now"])
        if self._richer:
            many: int = await connection.fetchval(SQL["bring_forward"], BUDGET, self._pace, self._begun)
            self._richer = many == self._pace
        for name, state in states.items():
            if state != "closed":
                self._closed.discard(name)
            elif self._seen.get(name, "closed") != "closed":
                self._closed.add(name)
            if state == "half_open":
                await connection.fetchval(SQL["bring_forward"], name, 1, None)
            elif (
                name in self._closed
                and await connection.fetchval(SQL["bring_forward"], name, self._pace, None) < self._pace
            ):
                self._closed.discard(name)
        self._seen = states
