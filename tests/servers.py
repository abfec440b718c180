"""An embedded server for the length of a block, and one question to it."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg

from service.core.settings import Settings
from service.core.streams import names_of
from service.embedded import Server, start_postgres, start_redis, stop

NAMES = names_of(Settings())


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that an ordinary user may enter; pytest's own is closed to all but its maker."""
    made = Path(tempfile.mkdtemp(prefix="callboard-test-"))
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made)


@asynccontextmanager
async def postgres(folder: Path) -> AsyncIterator[Server]:
    server = await start_postgres(folder)
    try:
        yield server
    finally:
        await stop(server)


@asynccontextmanager
async def redis(folder: Path) -> AsyncIterator[Server]:
    server = await start_redis(folder)
    try:
        yield server
    finally:
        await stop(server)


async def ask(url: str, question: str) -> object:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return await connection.fetchval(question)
    finally:
        await connection.close()
