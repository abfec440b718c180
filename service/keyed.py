"""Which types need a `partitionkey`: their pipelines keep state by it, say the rows that workers write."""

import asyncio
from contextlib import suppress
from typing import Final

import sql
from service.resources import POSTGRES_ERRORS, connect
from service.settings import Settings

REFRESH_S: Final = 2.0
_SQL: Final = sql.queries("store")


class Keyed:
    """Read again every few seconds, so that no event costs a query; what slips in, its worker refuses."""

    def __init__(self, settings: Settings) -> None:
        self.types: frozenset[str] = frozenset()
        self._settings: Final = settings

    async def run(self) -> None:
        """Refresh until cancelled; an error ends it, and the supervisor starts it again."""
        connection = await connect(self._settings, "keyed")
        try:
            while True:
                self.types = frozenset(row["type"] for row in await connection.fetch(_SQL["keyed"]))
                await asyncio.sleep(REFRESH_S)
        finally:
            with suppress(*POSTGRES_ERRORS):
                connection.terminate()
