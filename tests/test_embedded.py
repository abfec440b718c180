"""The embedded Postgres and Redis keep what they are given, and get out of each other's way."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from service.core.errors import StartError
from service.core.settings import Settings
from service.embedded import embedded, running, start_postgres, start_redis, stop
from service.embedded.process import command_line, until
from tests.debian import redis_environment
from tests.servers import ask, open_folder, postgres, redis

ROOT = Path(__file__).parent.parent
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="root only")


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as made:
        yield made


@pytest.fixture(scope="module")
def kept() -> Iterator[Path]:
    """For what may go on with the Postgres that the test before has left: making one takes seconds."""
    with open_folder() as made:
        yield made


@pytest.fixture
def settings(folder: Path) -> Settings:
    return Settings(data_dir=str(folder / "data"))


@pytest.mark.parametrize(
    ("given", "name"),
    [({"database_url": "mysql://u:p-w@h/x"}, "DATABASE_URL"), ({"redis_url": "p-w@h:6379"}, "REDIS_URL")],
)
def test_what_is_no_address_stops_the_boot_and_is_not_shown(given: dict[str, str], name: str) -> None:
    with pytest.raises(StartError, match=f"^{name} is no address that can be used") as caught:
        running(Settings(**given))  # type: ignore[arg-type]
    assert "p-w" not in str(caught.value)


async def test_what_was_written_is_there_after_a_stop_and_a_start(settings: Settings) -> None:
    async with embedded(settings) as first:
        found = running(settings)
        assert (found.database_url, found.redis_url) == (first.database_url, first.redis_url), (
            "other programs find them"
        )
        await ask(first.database_owner_url, "CREATE TABLE kept AS SELECT 42 AS answer")
        async with Redis.from_url(first.redis_url) as client:
            await client.set("kept", "42")
    with pytest.raises(StartError, match="No Postgres: set DATABASE_URL, or start `make up`"):
        running(settings)
    async with embedded(settings) as second:
        assert second == first
        assert await ask(second.database_owner_url, "SELECT answer FROM kept") == 42
        async with Redis.from_url(second.redis_url) as client:
            assert await client.get("kept") == b"42"


async def test_postgres_is_durable_and_of_the_version_we_promise(kept: Path) -> None:
    async with postgres(kept / "postgres") as server:
        assert str(await ask(server.url, "SHOW server_version")).startswith("18.")
        assert [await ask(server.url, f"SHOW {name}") for name in ("fsync", "synchronous_commit")] == ["on", "on"]
        assert await ask(server.url, "SHOW listen_addresses") == ""
        await ask(server.url, "CREATE EXTENSION vector")
        assert await ask(server.url, "SELECT '[3,4]'::vector <-> '[0,0]'::vector") == 5


async def test_a_killed_postgres_comes_back_with_every_commit(kept: Path) -> None:
    async with postgres(kept / "postgres") as server:
        await ask(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")
        server.process.kill()
        assert await until(lambda: server.process.poll() is not None, patience_s=10)
        assert (server.folder / "data" / "postmaster.pid").exists()
    async with postgres(kept / "postgres") as again:
        assert await ask(again.url, "SELECT answer FROM kept") == 42


async def test_a_stranger_with_the_pid_of_a_dead_postgres_is_no_hindrance(kept: Path) -> None:
    async with postgres(kept / "postgres") as server:
        note = (server.folder / "data" / "postmaster.pid").read_text().splitlines()
    owner = (server.folder / "data").stat()
    stale = server.folder / "data" / "postmaster.pid"
    stale.write_text("\n".join([str(os.getppid()), *note[1:]]) + "\n")
    os.chown(stale, owner.st_uid, owner.st_gid)
    async with postgres(kept / "postgres") as again:
        assert await ask(again.url, "SELECT 1") == 1


async def test_a_second_start_names_the_first(kept: Path) -> None:
    async with postgres(kept / "postgres"):
        with pytest.raises(StartError, match=rf"in use by process {os.getpid()}\b"):
            await start_postgres(kept / "postgres")
    async with redis(kept / "redis"):
        with pytest.raises(StartError, match=rf"in use by process {os.getpid()}\b"):
            await start_redis(kept / "redis")


ORPHANING = """
import asyncio, os, sys
from pathlib import Path
from service.embedded import start_postgres, start_redis
async def main():
    first, second = await start_postgres(Path(sys.argv[1], "postgres")), await start_redis(Path(sys.argv[1], "redis"))
    print(first.pid, second.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_servers_of_a_killed_parent_end_and_the_next_start_works(kept: Path) -> None:
    command = [sys.executable, "-c", ORPHANING, str(kept)]
    parent = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pids = [int(word) for word in (await asyncio.wait_for(parent.stdout.readline(), 60)).split()]
    assert [os.getsid(pid) for pid in pids] == pids  # out of the reach of a terminal's Ctrl-C
    parent.kill()
    await parent.communicate()
    async with postgres(kept / "postgres") as one, redis(kept / "redis") as other:
        assert await ask(one.url, "SELECT 1") == 1
        assert not {one.pid, other.pid} & set(pids)
        assert await until(lambda: not any(command_line(pid) for pid in pids), patience_s=10)


async def test_a_leftover_that_missed_its_parents_end_is_ended_by_the_next_start(folder: Path) -> None:
    server = await start_redis(folder / "redis")
    server.lock.close()  # as if the parent were gone
    async with redis(folder / "redis") as again:
        assert again.pid != server.pid
        assert await asyncio.to_thread(server.process.wait, 10) is not None


async def test_given_addresses_start_nothing(settings: Settings) -> None:
    given = replace(settings, database_url="postgresql://elsewhere/x", redis_url="redis://elsewhere")
    async with embedded(given) as found:
        assert found is given
        assert not settings.data_path.exists()


async def test_only_what_is_missing_is_started(settings: Settings) -> None:
    given = replace(settings, database_url="postgresql://user:secret@elsewhere/x")
    async with embedded(given) as found:
        assert found.database_url == given.database_url
        assert not (settings.data_path / "postgres").exists()
        assert "secret" not in (settings.data_path / "addresses.json").read_text()
        with pytest.raises(StartError, match="No Postgres: set DATABASE_URL"):
            running(settings)


async def test_addresses_of_a_dead_process_are_not_believed(settings: Settings) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    settings.data_path.mkdir()
    (settings.data_path / "addresses.json").write_text(f'{{"database_url":"x","redis_url":"y","pid":{dead.pid}}}')
    with pytest.raises(StartError, match="No Postgres"):
        running(settings)


async def test_a_stop_is_quick_in_order_and_may_be_said_twice(kept: Path) -> None:
    server = await start_postgres(kept / "postgres")
    await asyncio.wait_for(stop(server), 10)
    await stop(server)
    assert server.process.returncode == 0
    assert not (server.folder / "data" / "postmaster.pid").exists()


async def test_debians_own_redis_server_is_started_by_the_name_it_has(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a link to redis-check-rdb there, which does what its own name says."""
    for name, value in redis_environment(folder / "debian").items():
        monkeypatch.setenv(name, value)
    async with redis(folder / "redis") as server:
        assert "/debian/usr/bin/redis-server" in command_line(server.pid)
        async with Redis.from_url(server.url) as client:
            assert await client.ping()


@as_root
async def test_as_root_a_linked_program_whose_target_is_closed_is_copied_under_its_own_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of the link is open to all, the folder of what it is a link to is not."""
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    environment = redis_environment(folder / "debian")
    programs = folder / "debian" / "usr" / "bin"
    shutil.copyfile(programs / "redis-check-rdb", closed / "redis-check-rdb")
    (closed / "redis-check-rdb").chmod(0o755)
    (programs / "redis-server").unlink()
    (programs / "redis-server").symlink_to(closed / "redis-check-rdb")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    async with redis(folder / "redis") as server:
        program = Path(command_line(server.pid).split("\0")[0])
        assert program.name == "redis-server"
        assert program.is_relative_to(folder)
        assert not program.is_relative_to(folder / "debian")
