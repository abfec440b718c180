"""Two machines on a network of their own, and on it a Postgres and a Redis that are nobody's work but theirs.

Each machine has its client, as in host.py; its second interface leads to the network that they share.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct

from tests.deploy.host import Host, run, until

MANAGED: Final = "10.82.0.1"
INSIDE: Final = ("10.82.0.2", "10.82.0.3")
PASSWORD: Final = os.urandom(12).hex()
DATABASE_URL: Final = f"postgresql://callboard:{PASSWORD}@{MANAGED}:5432/callboard"
REDIS_URL: Final = f"redis://:{PASSWORD}@{MANAGED}:6379/0"
SERVERS: Final = {
    "postgres": (
        f"printf %s {PASSWORD} > /tmp/password; export POSTGRES_PASSWORD_FILE=/tmp/password POSTGRES_USER=callboard "
        "POSTGRES_DB=callboard PGDATA=/var/lib/postgresql/data PATH=/usr/lib/postgresql/17/bin:$PATH; "
        "exec sh /postgres.sh postgres -c unix_socket_directories=/tmp -c max_connections=200"
    ),
    "redis": f"exec redis-server --bind {MANAGED} --requirepass {PASSWORD} --dir /tmp --save ''",
}
PSQL: Final = "/usr/lib/postgresql/17/bin/psql"


class Pair(Struct, frozen=True):
    one: Host
    two: Host
    network: str
    servers: dict[str, "subprocess.Popen[bytes]"]
    roots: dict[str, str]

    def make(self) -> None:
        self.one.make()
        for name in SERVERS:
            (self.one.root / f"images/{name}.tar").unlink()
        # Of what compose.yaml asks for each container this is what a stack can't say.
        (self.one.root / "etc/docker").mkdir(exist_ok=True)
        (self.one.root / "etc/docker/daemon.json").write_text('{"no-new-privileges": true}\n')
        self.two.work.mkdir()
        run("cp", "-a", str(self.one.root), str(self.two.root))
        for name in ("ssh_config", "storage.conf"):
            shutil.copy(self.one.work / name, self.two.work)
        (self.two.root / "etc/hostname").write_text("two\n")

    def boot(self) -> None:
        self._in_network("ip", "link", "add", "br0", "type", "bridge")
        self._in_network("ip", "addr", "add", f"{MANAGED}/24", "dev", "br0")
        for each in ("br0", "lo"):
            self._in_network("ip", "link", "set", each, "up")
        for name, command in SERVERS.items():
            self._serve(name, command)
        with ThreadPoolExecutor(2) as side_by_side:
            for booted in [side_by_side.submit(host.boot) for host in (self.one, self.two)]:
                booted.result()
        for host, address in zip((self.one, self.two), INSIDE, strict=True):
            there, port = f"{host.name}-host", f"port{address[-1]}"
            self._in_network("ip", "link", "add", port, "type", "veth", "peer", "name", "eth1", "netns", there)
            self._in_network("ip", "link", "set", port, "master", "br0", "up")
            run("ip", "-n", there, "addr", "add", f"{address}/24", "dev", "eth1")
            run("ip", "-n", there, "link", "set", "eth1", "up")
        until(lambda: self.query("select 1") == "1", 30)

    def query(self, text: str) -> str:
        return self._in_network("chroot", self.roots["postgres"], PSQL, DATABASE_URL, "-XAtc", text).strip()

    def end(self) -> None:
        for host in (self.one, self.two):
            host.cut_power()
        for server in self.servers.values():
            for first in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split():
                os.kill(int(first), signal.SIGKILL)
            server.wait(30)
        if Path("/run/netns", self.network).exists():
            run("ip", "netns", "del", self.network)
        run("buildah", "rm", "-a", env=self.one.builder)

    def _in_network(self, *command: str) -> str:
        return run("ip", "netns", "exec", self.network, *command)

    def _serve(self, name: str, command: str) -> None:
        result = run("buildah", "from", f"localhost/{name}:test", env=self.one.builder).strip()
        self.roots[name] = run("buildah", "mount", result, env=self.one.builder).strip()
        with (self.one.work / name).open("wb") as console:
            self.servers[name] = subprocess.Popen(
                ["systemd-nspawn", "--register=no", "--keep-unit", "-q", "--as-pid2", "-D", self.roots[name],
                 f"--network-namespace-path=/run/netns/{self.network}", f"--machine={self.network}-{name}",
                 f"--user={name}", "--console=pipe", "sh", "-c", command],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console,
            )  # fmt: skip


@contextmanager
def machines(work: Path, name: str) -> Iterator[Pair]:
    """Two booted machines and their servers; afterwards nothing of them is left, however the block ends."""
    pair = Pair(Host(work / "one", f"{name}-one", []), Host(work / "two", f"{name}-two", []), f"{name}-net", {}, {})
    try:
        pair.make()
        run("ip", "netns", "add", pair.network)
        pair.boot()
        yield pair
    finally:
        pair.end()
        shutil.rmtree(work, ignore_errors=True)
