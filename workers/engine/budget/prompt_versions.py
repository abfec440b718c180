"""Versions of prompts: one that was paid for keeps its text, or what the ledger says of it would not be true."""

import asyncio
from contextlib import suppress
from typing import Any, Final

import sql
from prompts import PromptError, Prompts
from service.core.errors import Outage
from service.core.servers import POSTGRES_ERRORS, Pool
from workers.models.call_log import Call

ASK_TIMEOUT_S: Final = 5.0
SQL: Final = sql.queries("prompt_versions")


class PromptVersions:
    """What Postgres has of them. `changed`: why this worker must end, once it is known."""

    def __init__(self, pool: Pool) -> None:
        self.changed: Final[asyncio.Future[str]] = asyncio.get_running_loop().create_future()
        self._pool: Final = pool
        self._used: Final[set[tuple[str, int]]] = set()

    async def check(self, prompts: Prompts) -> None:
        """All files, at the boot. Where Postgres does not answer then, `use` finds the same, before the first call.

        Raises PromptError.
        """
        files = [prompt for versions in prompts.versions.values() for prompt in versions.values()]
        hashes = {(prompt.name, prompt.version): prompt.hash for prompt in files}
        with suppress(*POSTGRES_ERRORS):
            async with asyncio.timeout(ASK_TIMEOUT_S):
                arguments = ([name for name, _ in hashes], [version for _, version in hashes])
                rows = await self._pool.fetch(SQL["used"], *arguments)
            for row in rows:
                if row["hash"] != hashes[row["name"], row["version"]]:
                    raise PromptError(_changed(row))

    async def use(self, call: Call) -> None:
        """Before a call: its prompt's version is on record, with this text. Raises Outage where that is not so."""
        key = (call.prompt, call.version)
        if not call.version or key in self._used:
            return
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                (row,) = await self._pool.fetch(SQL["use"], *key, call.hash)
        except POSTGRES_ERRORS as error:
            raise Outage(f"Postgres did not say whether prompt {call.prompt}@{call.version} is as it was") from error
        if row["hash"] != call.hash:
            if not self.changed.done():
                self.changed.set_result(_changed(row))
            raise Outage(_changed(row))
        self._used.add(key)


def _changed(row: Any) -> str:
    file, following = (f"prompts/{row['name']}/v{number}.md" for number in (row["version"], row["version"] + 1))
    return (
        f"{file} is another text than calls were made with (the first {row['first_used']:%Y-%m-%d}). "
        f"Put it back, and write the change to a new version, such as {following}."
    )
