"""The ledger: every LLM call is stored before the step that made it goes on."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from uuid import UUID

from service.commits import GroupCommit
from service.resources import Connection, connect
from service.settings import Settings
from workers.clients.llm import Call
from workers.engine.claimed import SQL

RECORD_TIMEOUT_S: Final = 30.0


class Ledger:
    """Group commits of calls, shared by all running events."""

    def __init__(self, settings: Settings) -> None:
        self._commits: Final = GroupCommit[tuple[Any, ...], None]("ledger", lambda: connect(settings, "ledger"), _write)
        self.run: Final[Callable[[], Awaitable[None]]] = self._commits.run

    async def record(self, event_id: UUID, run: int, claim: int, step: str, call: Call) -> None:
        """Raises Unavailable where Postgres does not take it in time."""
        row = (
            call.call_id,
            event_id,
            run,
            claim,
            step,
            call.at,
            call.prompt,
            call.version,
            call.hash,
            call.request_hash,
        )
        paid = (call.provider, call.model, call.tokens_in, call.tokens_out, call.cost_usd, call.priced, call.ms)
        reply = None if call.reply is None else call.reply.replace("\0", "�")
        await self._commits.put((*row, *paid, call.outcome, reply, call.simulated), RECORD_TIMEOUT_S)


async def _write(connection: Connection, batch: Sequence[tuple[Any, ...]]) -> list[None]:
    await connection.execute(SQL["calls"], *zip(*batch, strict=True))
    return [None] * len(batch)
