"""Whoever comes through a proxy comes from this machine: without key or token nobody is in, whatever proxy it is."""

import getpass
import os
import pwd
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest

from service.core.settings import Settings
from tests.board import serving
from tests.debian import libraries, unpacked
from tests.eventually import eventually
from tests.keys import AT_HOME, bearer, make_key
from tests.processes import free_port
from tests.servers import open_folder

PACKAGES: Final = ("nginx", "caddy", "socat", "openssh-server", "libwrap0")
NGINX: Final = """
pid {folder}/nginx.pid;
daemon off;
error_log {folder}/nginx.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{behind}; }} }}
}}
"""
SSHD: Final = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
PidFile none
AuthorizedKeysFile {folder}/key.pub
StrictModes no
UsePAM no
"""
DAEMON: Final = pwd.getpwnam("daemon")  # as root, sshd would need an account for its parts
Commands = list[list[str | Path]]


def nginx(root: Path, folder: Path, port: int, behind: int) -> Commands:
    """As everybody writes it first: the Host that it sends is that of the address behind it."""
    (folder / "conf").write_text(NGINX.format(folder=folder, port=port, behind=behind), encoding="ascii")
    return [[root / "usr/sbin/nginx", "-p", folder, "-c", folder / "conf"]]


def caddy(root: Path, folder: Path, port: int, behind: int) -> Commands:
    text = f"{{\n\tadmin off\n}}\nhttp://:{port} {{\n\tbind 127.0.0.1\n\treverse_proxy 127.0.0.1:{behind}\n}}\n"
    (folder / "Caddyfile").write_text(text, encoding="ascii")
    return [[root / "usr/bin/caddy", "run", "--config", folder / "Caddyfile"]]


def socat(root: Path, folder: Path, port: int, behind: int) -> Commands:
    return [[root / "usr/bin/socat", f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr", f"TCP:127.0.0.1:{behind}"]]


def ssh(root: Path, folder: Path, port: int, behind: int) -> Commands:
    """`ssh -L`, from a machine of which only the account is known."""
    own = free_port()
    for name in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True, timeout=30)
        if os.geteuid() == 0:
            os.chown(folder / name, DAEMON.pw_uid, DAEMON.pw_gid)
    (folder / "sshd").write_text(SSHD.format(folder=folder, port=own), encoding="ascii")
    who = DAEMON.pw_name if os.geteuid() == 0 else getpass.getuser()
    options = ["-F", "/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    to: list[str | Path] = [*options, "-i", folder / "key", "-p", str(own), f"{who}@127.0.0.1"]
    client: list[str | Path] = [
        "ssh",
        "-N",
        "-o",
        "ConnectionAttempts=20",
        "-L",
        f"127.0.0.1:{port}:127.0.0.1:{behind}",
        *to,
    ]
    return [[root / "usr/sbin/sshd", "-D", "-e", "-f", folder / "sshd"], client]


@pytest.fixture(scope="module")
def packages() -> Iterator[Path]:
    with open_folder() as folder:
        yield unpacked(folder, *PACKAGES)


@asynccontextmanager
async def running(commands: Commands, root: Path, folder: Path) -> AsyncIterator[None]:
    environ = {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": libraries(root), "HOME": str(folder)}
    user = {"user": DAEMON.pw_uid, "group": DAEMON.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    processes = []
    try:
        with (folder / "said").open("wb") as out:
            for command in commands:
                own: dict[str, object] = user if Path(command[0]).name == "sshd" else {}  # it has no privileges to part
                processes.append(
                    subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=out, **own)  # type: ignore[call-overload]
                )
        yield
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(30)


@pytest.mark.parametrize("proxy", [nginx, caddy, socat, ssh])
async def test_nobody_is_in_by_a_proxy(
    proxy: Callable[[Path, Path, int, int], Commands], packages: Path, settings: Settings
) -> None:
    """Before a key is made, and behind that."""
    with open_folder() as folder:
        folder.chmod(0o777)
        async with serving(settings) as url:
            port, behind = free_port(), httpx.URL(url).port or 0
            async with (
                running(proxy(packages, folder, port, behind), packages, folder),
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False) as http,
            ):

                async def answers() -> bool:
                    try:
                        return (await http.get("/healthz")).status_code == 200
                    except httpx.TransportError:
                        return False

                await eventually(answers, 30)
                for key in ("", await make_key(settings, "read")):
                    for headers in ({}, {"Host": "localhost"}, {"X-Forwarded-For": "127.0.0.1"}, bearer("cl_guessed")):
                        assert (await http.get("/events", headers=headers)).status_code == 401, (key, headers)
                        page = await http.get("/", headers=headers)
                        assert (page.status_code, page.headers["location"]) == (303, "/login?next=%2F"), (key, headers)
                    known = bearer(key) if key else AT_HOME
                    assert (await http.get("/events", headers=known)).status_code == 200
