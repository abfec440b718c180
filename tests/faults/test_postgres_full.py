"""Row 28: the disk under Postgres is full."""

import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import pytest

from tests.faults.behind import DATABASE
from tests.faults.oracle import judge
from tests.faults.rig import Rig
from tests.faults.stage import goes_on, refused, under_load

REFUSED = (202, 503)
DISK_BYTES = 64 * 1024 * 1024


@pytest.mark.slow_fault
@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system is mounted: root only")
async def test_row_28_postgres_disk_full(rig: Rig) -> None:
    """What is stored stays so, what can't be is refused; with room again, all goes on by itself."""
    async with _small_disk(rig) as disk:
        programs = [await rig.api(), await rig.worker(), await rig.worker()]
        async with under_load(rig, programs, told=REFUSED):
            _fill(disk / "filler")
            rig.injected()
            await refused(rig)
            (disk / "filler").unlink()
            await goes_on(rig, 60)
        await judge(rig)


def _fill(file: Path) -> None:
    with suppress(OSError), file.open("wb", buffering=0) as filler:
        while filler.write(b"x" * 8192) == 8192:
            pass


@asynccontextmanager
async def _small_disk(rig: Rig) -> AsyncIterator[Path]:
    """One for the rig's database; that of the log stays large, since Postgres ends where it can't write its log."""
    disk = rig.machines.folder / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", disk], check=True)
    tablespace = disk / "tables"
    tablespace.mkdir()
    owner = Path("/proc", str(rig.postgres.server.pid)).stat()
    os.chown(tablespace, owner.st_uid, owner.st_gid)
    server = await asyncpg.connect(rig.postgres.server.url, timeout=10)
    try:
        await server.execute(f"create tablespace small location '{tablespace}'")
        await _to(server, "small")
        yield disk
    finally:
        for child in rig.children:
            child.tell(signal.SIGKILL)
            await child.ended()
        await _to(server, "pg_default")
        await server.execute("drop tablespace small")
        await server.close(timeout=5)
        subprocess.run(["umount", "-l", disk], check=True)
        disk.rmdir()


async def _to(server: "asyncpg.Connection[asyncpg.Record]", tablespace: str) -> None:
    await server.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", DATABASE)
    await server.execute(f"alter database {DATABASE} set tablespace {tablespace}")
