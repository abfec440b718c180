"""Real Postgres and Redis, started once per test process; each test has a database and a Redis number of its own."""

import asyncio
import itertools
import logging
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace
from redis.asyncio import Redis
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

from service.core.destinations import ON_THIS_MACHINE
from service.core.log import Lines
from service.core.migrate import migrate
from service.core.settings import Settings
from service.embedded import Server, start_postgres, start_redis, stop
from service.embedded.postgres import as_runner
from tests.board import Board, board_on
from tests.keys import TOKEN
from tests.processes import ROOT
from tests.shipped import MINE, of_users, run_without

IN_MEMORY = Path("/dev/shm")
ROOM_BYTES = 2 << 30
REDIS_NUMBERS = itertools.cycle(range(1, 512))
TEMPLATE = "migrated"
# Begun last, these would keep one process at work when the others have nothing left to do. The first measures what is
# got out of a limit: beside each other its tests have company that mostly waits.
LONG = (
    "test_limits_under_load.py",
    "test_twenty_nodes.py",
    "test_readme.py",
    "test_up.py",
    "test_order_property.py",
    "test_programs.py",
    "test_clock_skew.py",
    "test_extension.py",
    "test_user_code.py",
)
# A file is one process's, for the sake of what its tests share. These share nothing, and are long.
APART = ("test_limits_under_load.py", "test_readme.py", "test_programs.py", "test_clock_skew.py")


@pytest.fixture(scope="session", autouse=True)
def _storable_reports(pytestconfig: pytest.Config) -> None:
    """Logs that a report quotes are formatted as the product does: half a surrogate in them would end pytest-xdist."""
    plugin = pytestconfig.pluginmanager.get_plugin("logging-plugin")
    if plugin is not None:
        plugin.report_handler.setFormatter(Lines((), plain=True, with_payloads=True))


class _Failures(logging.Handler):
    """What uvicorn says of a request that ended in an exception, other than that of a server which is stopped."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)):
            self.lines.append(Lines((), plain=True, with_payloads=True).format(record))


@pytest.fixture(autouse=True)
def _no_request_fails() -> Iterator[None]:
    """A client that has gone does not hear of it, and a test that looks for something else would not see it."""
    failures, uvicorn = _Failures(), logging.getLogger("uvicorn.error")
    uvicorn.addHandler(failures)
    yield
    uvicorn.removeHandler(failures)
    assert not failures.lines, failures.lines[0]


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """The product is tested as it ships: where somebody has added files of his own, in a copy without them."""
    added, root = of_users(ROOT), config.rootpath
    mine = [argument for argument in config.args if argument.startswith((MINE, str(root / MINE)))]
    if not added or mine or hasattr(config, "workerinput"):
        return None
    with_mine = config.args_source is not pytest.Config.ArgsSource.ARGS
    return run_without(added, ROOT, config.invocation_params.args, with_mine=with_mine)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """By file, or by test."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return nodeid if file.endswith(APART) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling | None:
    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


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
