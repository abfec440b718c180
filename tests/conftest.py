"""Real Postgres and Redis, started once per test process; each test has a database and a Redis number of its own."""

import asyncio
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from service.destinations import ON_THIS_MACHINE
from service.embedded import Server, start_postgres, start_redis, stop
from service.embedded.postgres import as_runner
from service.log import Lines
from service.migrate import migrate
from service.settings import Settings
from tests.board import Board, board_on
from tests.keys import TOKEN

IN_MEMORY = Path("/dev/shm")
ROOM_BYTES = 2 << 30
REDIS_NUMBERS = itertools.cycle(range(1, 512))
TEMPLATE = "migrated"
# A file is one process's: begun last, these would keep it at work when the other has nothing left to do.
LONG = ("test_order_property.py", "test_limits_under_load.py", "test_up.py", "test_readme.py", "test_twenty_nodes.py")


@pytest.fixture(scope="session", autouse=True)
def _storable_reports(pytestconfig: pytest.Config) -> None:
    """Logs that a report quotes are formatted as the product does: half a surrogate in them would end pytest-xdist."""
    plugin = pytestconfig.pluginmanager.get_plugin("logging-plugin")
    if plugin is not None:
        plugin.report_handler.setFormatter(Lines((), plain=True, told=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session")
def servers() -> Iterator[tuple[Server, Server]]:
    """A Postgres with a migrated template database, and a Redis."""
    with TemporaryDirectory(prefix="callboard-test-", dir=_where(), ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # as root, Postgres runs as somebody else, who has to get in
        postgres = asyncio.run(start_postgres(Path(folder) / "postgres"))
        redis = asyncio.run(start_redis(Path(folder) / "redis"))
        try:
            asyncio.run(_loosen(postgres.url))
            asyncio.run(_make_template(postgres.url))
            yield postgres, redis
        finally:
            asyncio.run(stop(redis))
            asyncio.run(stop(postgres))


@pytest.fixture
async def settings(servers: tuple[Server, Server], tmp_path: Path) -> AsyncIterator[Settings]:
    """A corner of its own: an empty migrated database, an empty Redis number, a folder."""
    postgres, redis = servers
    name = f"test_{next(NAMES)}"
    copied = f'create database "{name}" template {TEMPLATE} strategy file_copy'  # a third of the work of wal_log
    database_url = await _admin(postgres.url, copied, name)
    redis_url = f"{redis.url.partition('?')[0]}?db={next(REDIS_NUMBERS)}"
    async with Redis.from_url(redis_url) as client:
        await client.flushdb()
    own = Settings(port=0, data_dir=str(tmp_path), redis_url=redis_url, grace_s=5)
    own = replace(own, database_url=as_runner(database_url), database_owner_url=database_url)
    yield replace(own, local_token=TOKEN, simulate="on", web_allow=ON_THIS_MACHINE)  # as `callboard up` does
    with suppress(asyncpg.PostgresError):
        await _admin(postgres.url, f'drop database "{name}" with (force)', name)


NAMES = itertools.count()


@pytest.fixture
async def board(settings: Settings) -> AsyncIterator[Board]:
    """A running Callboard: the API on a free port and one worker, both in this process."""
    async with board_on(settings) as running:
        yield running


def _where() -> Path | None:
    """In memory, where there is room: a database has some 300 files, which are made and removed for each test.

    As root, Postgres's programs are copied beside its data, so they have to run there: in a container they may not.
    """
    if not IN_MEMORY.is_dir() or os.statvfs(IN_MEMORY).f_flag & os.ST_NOEXEC:
        return None
    return IN_MEMORY if shutil.disk_usage(IN_MEMORY).free > ROOM_BYTES else None


async def _loosen(url: str) -> None:
    """Nobody ends this Postgres the hard way (who does has one of their own): nothing of it has to reach the disk."""
    connection = await asyncpg.connect(url)
    try:
        for name in ("fsync", "full_page_writes"):
            await connection.execute(f"alter system set {name} = off")
        await connection.execute("select pg_reload_conf()")
    finally:
        await connection.close()


async def _make_template(url: str) -> None:
    owner = await _admin(url, f"create database {TEMPLATE}", TEMPLATE)
    await migrate(Settings(database_url=as_runner(owner), database_owner_url=owner))


async def _admin(url: str, statement: str, name: str) -> str:
    """Run a statement outside the test's database; returns the address of the database `name`."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
    head, _, query = url.partition("?")
    return f"{head.rpartition('/')[0]}/{name}?{query}"
