"""What the tests do to the second machine: only what a user has, which is `make`, ssh and an HTTP client."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from starlette.routing import Route

from service.core.settings import Settings
from service.http.app import create_app
from tests.deploy.host import ADDRESS, SITE, THERE, Host, run, until
from tests.deploy.probe import Asked, Seen
from tests.processes import ROOT

SLOWEST_S: Final = 3.0
FILLED: Final = "/filled"  # the source of events that no client sent
HELD_S: Final = 15.0  # the proxy looks for somebody for ten seconds
ATTACK_S: Final = 15
ATTACKS: Final = ("A2", "A4", "A7", "batches")
SECRET: Final = f"sk-{os.urandom(12).hex()}"
STREAMS: Final = any(
    getattr(route, "path", "") == "/events/{event_id}/stream"
    for route in create_app(Settings(database_url="postgresql://none", redis_url="redis://none")).routes
    if isinstance(route, Route)
)
VERSION: Final = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000/healthz').read().decode())"
# What a user adds to the product: an event that takes a while.
NAPS: Final = {
    "schemas/events/naps.py": (
        '"""Naps."""\n\nfrom schemas import Event\n\n\n'
        'class NapWanted(Event, tag="nap.wanted", frozen=True):\n    seconds: float\n'
    ),
    "workers/nodes/naps.py": (
        '"""Naps."""\n\nimport asyncio\n\nfrom schemas.events.naps import NapWanted\n\n\n'
        "async def sleep(nap: NapWanted) -> float:\n    await asyncio.sleep(nap.seconds)\n    return nap.seconds\n"
    ),
    "workers/pipelines/naps.py": (
        '"""Naps."""\n\nfrom schemas.events.naps import NapWanted\nfrom workers.kit import Pipeline\n'
        "from workers.nodes.naps import sleep\n\nnaps = Pipeline(on=NapWanted, flow=[sleep])\n"
    ),
}


class Product:
    """A user's clone, from which releases go to the machine."""

    def __init__(self, folder: Path, host: Host) -> None:
        self.folder = folder
        self.host = host

    def release(self, files: Mapping[str, str]) -> str:
        """Commit these; returns the version."""
        for name, text in files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text, encoding="utf-8")
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "a release")
        return self.version()

    def version(self) -> str:
        """Of what is committed."""
        return self.git("rev-parse", "--short=12", "HEAD").strip()

    def next_migration(self, name: str) -> str:
        number = len(list((self.folder / "sql/migrations").glob("*.sql"))) + 1
        return f"sql/migrations/{number:04}_{name}.sql"

    def withdraw(self) -> None:
        """The last commit never was."""
        self.git("reset", "-q", "--hard", "HEAD~1")

    def git(self, *words: str) -> str:
        return run("git", "-c", "user.name=user", "-c", "user.email=user@callboard.test", *words, cwd=self.folder)

    def start(self, *words: str, **env: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["make", "-s", *words, "HOST=box"], cwd=self.folder, text=True,
            env={**os.environ, **self.host.builder, "SSH": self.host.ssh_command, **env},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def make(self, *words: str, fails: bool = False) -> str:
        """What it says. Raises AssertionError where it does not end as expected."""
        return ended(self.start(*words), fails=fails)


def ended(process: "subprocess.Popen[str]", *, fails: bool = False) -> str:
    told, _ = process.communicate(timeout=600)
    assert (process.returncode != 0) is fails, told
    return told


def configure(host: Host, **settings: str) -> None:
    """The last line that names a setting counts."""
    lines = "\n".join(f"{name}={value}" for name, value in settings.items())
    host.ssh(f"echo {shlex.quote(lines)} >> {THERE}/settings")


def live(host: Host) -> str:
    """The container of the API that serves."""
    colour = host.ssh(f"tail -n 1 {THERE}/releases | cut -d ' ' -f 3").strip()
    return f"callboard-web-{colour}-1"


def containers(host: Host, name: str) -> list[str]:
    return host.ssh(f"docker ps -a --format '{{{{.Names}}}}' -f name={name}").split()


def served(host: Host) -> str:
    """The version that it says it is."""
    return str(json.loads(host.ssh(f"docker exec {live(host)} python3 -c {shlex.quote(VERSION)}"))["version"])


def key(host: Host) -> str:
    return host.ssh(f"cat {THERE}/secrets/api_key").strip()


def curl(host: Host, path: str, *words: str, code: bool = True, known: str | None = None) -> str:
    """From the client's side, with this key or the first: the status, or the body."""
    status = ("-o", "/dev/null", "-w", "%{http_code}") if code else ()
    caller = ("-H", f"Authorization: Bearer {known or key(host)}")
    return outside(host, *status, *caller, *words, "-k", f"https://{SITE}{path}")


def outside(host: Host, *words: str) -> str:
    """curl on the client, which finds the machine under its name."""
    resolved = (each for port in (80, 443, 8443) for each in ("--resolve", f"{SITE}:{port}:{ADDRESS}"))
    return run(*host.in_client, "curl", "-s", "-m", "60", *resolved, *words)


def query(host: Host, text: str) -> str:
    return host.ssh(f"docker exec callboard-postgres-1 psql -XAtU callboard -c {shlex.quote(text)}").strip()


def send_nap(host: Host, seconds: float) -> str:
    event = json.dumps({"type": "nap.wanted", "data": {"seconds": seconds}})
    told: dict[str, Any] = json.loads(curl(host, "/events", "--json", event, code=False))
    return str(told["event_id"])


def succeeded(host: Host, event_id: str) -> None:
    until(lambda: query(host, f"select status from events where event_id = '{event_id}'") == "succeeded", 60)


@contextmanager
def load(host: Host, *, hurts: bool = False, all_stop: bool = False) -> Iterator[None]:
    """The probe, for as long as the block lasts; it must have seen no failure, or some where it `hurts`. Where
    `all_stop`, some of its requests must have waited in the proxy, or been told when to come again."""
    with probed(host, STREAMS, all_stop) as found:
        yield
    (seen,) = found
    assert all_stop or not seen.held_off
    assert not all_stop or seen.held_off or seen.slowest_s > SLOWEST_S, "nothing was stopped"
    if hurts:
        assert seen.failed > 0, "the probe does not see what it should"
        return
    assert not seen.failed, seen.failures
    assert seen.slowest_s < (HELD_S if all_stop else SLOWEST_S)
    at_rest(host)
    lost = set(seen.events) - set(query(host, "select event_id from events").split())
    assert not lost


@contextmanager
def attacked(host: Host) -> Iterator[None]:
    """Another tenant means no good for ATTACK_S, through the proxy; it is refused, and the API goes on."""
    options = "--tenant hostile --name hostile --scope admin --rate 200/s"
    known = host.ssh(f"{THERE}/host.sh callboard keys create {options} 2>/dev/null").split()[-1]
    much = {f"ext{n}": "x" * 240 for n in range(31)}
    filling = host.work / "filling"
    filling.write_text(json.dumps([{"type": "nap.wanted", "data": {"seconds": 0}, **much}] * 100))
    assert curl(host, "/events/batch", "--json", f"@{filling}", known=known) == "202"
    command = (*host.in_client, "nice", "-n", "19", sys.executable, "-m", "tests.attacks", f"{SITE}@{ADDRESS}:443")
    process = subprocess.Popen([*command, known, str(ATTACK_S), *ATTACKS], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        yield
    finally:
        output, _ = process.communicate(timeout=ATTACK_S + 60)
    print(f"    the hostile tenant heard {output.decode().strip()}")
    heard = msgspec.json.decode(output, type=dict[str, dict[str, int]])
    assert heard["batches"].keys() >= {"413", "429"}
    state = "{{.RestartCount}} {{.State.OOMKilled}}"
    assert host.ssh(f"docker inspect -f '{state}' {live(host)}").strip() == "0 false"


@contextmanager
def probed(host: Host, streams: bool, all_stop: bool = False) -> Iterator[list[Seen]]:
    """The probe, for as long as the block lasts; behind it the list holds what it has seen."""
    command = [*host.in_client, sys.executable, "-m", "tests.deploy.probe"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(msgspec.json.encode(Asked(ADDRESS, SITE, key(host), streams, all_stop)) + b"\n")
    process.stdin.flush()
    found: list[Seen] = []
    try:
        yield found
    finally:
        told, _ = process.communicate(timeout=90)
    seen = msgspec.json.decode(told, type=Seen)
    print(
        f"    {seen.requests} requests, {seen.streams} streams, {seen.failed} failed, {seen.held_off} held off, "
        f"slowest {seen.slowest_s:.2f} s, p99 {seen.p99_s:.2f} s"
    )
    assert seen.requests > 100
    assert (seen.streams > 0) is streams
    found.append(seen)


def at_rest(host: Host) -> None:
    """All events have ended well, none of them at the cost of a second attempt."""
    ours = f"from events where source <> '{FILLED}'"
    until(lambda: query(host, f"select count(*) {ours} and finished_at is null") == "0", 60)
    assert query(host, f"select count(*) {ours} and (status <> 'succeeded' or attempts > 1)") == "0"
