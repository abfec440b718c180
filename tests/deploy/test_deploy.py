"""`make deploy` and its company, against a second machine: what is promised, under load where it matters."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from starlette.routing import Route

from service.http.app import create_app
from service.settings import Settings
from tests.deploy.host import ADDRESS, SITE, STANDINS, THERE, Host, machine, run, until
from tests.deploy.probe import Asked, Seen
from tests.processes import ROOT

pytestmark = pytest.mark.host

SLOWEST_S: Final = 3.0
IMAGE_BYTES_MAX: Final = 200_000_000
SECRET: Final = f"sk-{os.urandom(12).hex()}"
STREAMS: Final = any(
    getattr(each, "path", "") == "/events/{event_id}/stream"
    for each in create_app(Settings(database_url="postgresql://none", redis_url="redis://none")).routes
    if isinstance(each, Route)
)
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
        return self.git("rev-parse", "--short=12", "HEAD").strip()

    def withdraw(self) -> None:
        """The last commit never was."""
        self.git("reset", "-q", "--hard", "HEAD~1")

    def git(self, *words: str) -> str:
        return run("git", "-c", "user.name=user", "-c", "user.email=user@callboard.test", *words, cwd=self.folder)

    def start(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["make", "-s", *words, "HOST=box"], cwd=self.folder, text=True,
            env={**os.environ, **self.host.builder, "SSH": self.host.ssh_command},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def make(self, *words: str, fails: bool = False) -> str:
        """What it says. Raises AssertionError where it does not end as expected."""
        process = self.start(*words)
        told, _ = process.communicate(timeout=300)
        assert (process.returncode != 0) is fails, told
        return told


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with machine(tmp_path_factory.mktemp("machine"), os.environ.get("MACHINE", f"callboard-{os.getpid()}")) as made:
        made.ssh("for each in /images/*.tar; do docker load -q -i $each; done", timeout_s=300)
        yield made


@pytest.fixture(scope="session")
def product(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """A first release serves, deployed as deploy/README.md says; nothing but `make` and ssh touches the machine."""
    folder = tmp_path_factory.mktemp("clone")
    names = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(None, names):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    # The clone's make finds the environment that runs these tests up to date.
    made = Product(folder, host)
    made.git("init", "-q")
    made.release(NAPS)
    made.make("bootstrap")
    settings = {"SITE": SITE, "TLS": "internal", "CALLBOARD_SIMULATE": "on", "CALLBOARD_GRACE_S": "8", "READY_S": "15"}
    settings |= {variable: f"localhost/{name}:test" for name, variable in STANDINS.items()}
    lines = "\n".join(f"{name}={value}" for name, value in settings.items())
    host.ssh(f"echo {shlex.quote(lines)} > {THERE}/settings")
    host.ssh(f"printf %s {SECRET} | {THERE}/host.sh secret anthropic_api_key")
    made.make("deploy")
    yield made
    shutil.rmtree(folder)


def served(host: Host) -> str:
    """The version that the live colour says it is."""
    live = host.ssh(f"tail -n 1 {THERE}/releases | cut -d ' ' -f 3").strip()
    told = host.ssh(f"docker exec callboard-web-{live}-1 python3 -c {shlex.quote(ASK)}")
    return str(json.loads(told)["version"])


ASK: Final = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000/healthz').read().decode())"


def key(host: Host) -> str:
    return host.ssh(f"cat {THERE}/secrets/api_key").strip()


def curl(host: Host, path: str, *words: str, code: bool = True) -> str:
    """From the client's side: the status, or the body."""
    status = ("-o", "/dev/null", "-w", "%{http_code}") if code else ()
    command = (*host.in_client, "curl", "-sk", "-m", "20", "--resolve", f"{SITE}:443:{ADDRESS}", *status, *words)
    return run(*command, "-H", f"Authorization: Bearer {key(host)}", f"https://{SITE}{path}")


def query(host: Host, text: str) -> str:
    return host.ssh(f"docker exec callboard-postgres-1 psql -XAtU callboard -c {shlex.quote(text)}").strip()


@contextmanager
def load(host: Host, *, hurts: bool = False) -> Iterator[None]:
    """The probe, for as long as the block lasts; it must have seen no failure, or some where it `hurts`."""
    asked = Asked(ADDRESS, SITE, key(host), STREAMS)
    process = subprocess.Popen(
        [*host.in_client, sys.executable, "-m", "tests.deploy.probe"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin
    process.stdin.write(msgspec.json.encode(asked) + b"\n")
    process.stdin.flush()
    try:
        yield
    finally:
        told, _ = process.communicate(timeout=90)
    seen = msgspec.json.decode(told, type=Seen)
    print(f"    {seen.requests} requests, {seen.streams} streams, {seen.failed} failed, slowest {seen.slowest_s:.2f} s")
    assert seen.requests > 100
    assert (seen.streams > 0) is STREAMS
    if hurts:
        assert seen.failed > 0, "the probe does not see what it should"
        return
    assert not seen.failed, seen.failures
    assert seen.slowest_s < SLOWEST_S
    at_rest(host)
    lost = set(seen.events) - set(query(host, "select event_id from events").split())
    assert not lost


def at_rest(host: Host) -> None:
    """All events have ended well, none of them at the cost of a second attempt."""
    until(lambda: query(host, "select count(*) from events where finished_at is null") == "0", 60)
    assert query(host, "select count(*) from events where status <> 'succeeded' or attempts > 1") == "0"


def test_a_container_may_do_nothing_that_it_need_not(host: Host, product: Product) -> None:
    live = host.ssh(f"tail -n 1 {THERE}/releases | cut -d ' ' -f 3").strip()
    for name in (f"callboard-web-{live}-1", host.ssh("docker ps -q -f name=worker").split()[0]):
        process = host.ssh(f"docker exec {name} python3 -c \"print(open('/proc/self/status').read())\"")
        assert re.search(r"^Uid:\s+10001\s+10001", process, re.MULTILINE)
        assert re.search(r"^CapBnd:\s+0+$", process, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\s+1$", process, re.MULTILINE)
        assert "Read-only file system" in host.ssh(f"docker exec {name} touch /app/x 2>&1 || true")
    image = f"localhost/callboard:{served(host)}"
    assert int(host.ssh(f"docker image inspect -f '{{{{.Size}}}}' {image}")) < IMAGE_BYTES_MAX
    listening = set(re.findall(r":(\d+) ", host.ssh("ss -Hltn 'not src 127.0.0.0/8' | awk '{print $4 \" \"}'")))
    assert listening == {"22", "80", "443"}


def test_secrets_are_files_and_nothing_else(host: Host, product: Product) -> None:
    secrets = [SECRET, key(host), host.ssh(f"cat {THERE}/secrets/postgres_password").strip()]
    shown = host.ssh(
        "docker inspect $(docker ps -aq); docker history --no-trunc $(docker image ls -q localhost/callboard);"
        f"ps axeww; for each in $(docker ps -aq); do docker logs $each 2>&1; done; cat {THERE}/log; journalctl -b"
    )
    tracked = product.git("grep", "-h", "", "HEAD", "--", ".")
    assert [each for each in secrets if each in shown or each in tracked] == []
    assert host.ssh(f"stat -c %a {THERE} {THERE}/secrets").split() == ["700", "700"]
    assert curl(host, "/types") == "200", "the secrets are those in use"


def test_the_proxy_keeps_inside_what_is_not_for_outside(host: Host, product: Product) -> None:
    assert [curl(host, each) for each in ("/healthz", "/readyz", "/metrics")] == ["404"] * 3
    assert curl(host, "/types", "-H", "Authorization: Bearer cb_wrong") == "401"
    (host.work / "large").write_bytes(b"x" * 70_000_000)
    assert (
        curl(host, "/events", "-H", "Content-Type: application/json", "--data-binary", f"@{host.work}/large") == "413"
    )
    plain = run(
        *host.in_client,
        "curl",
        "-s",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "-H",
        f"Host: {SITE}",
        f"http://{ADDRESS}",
    )
    assert plain == "308"


def test_a_deployment_and_its_rollback_fail_nobody(host: Host, product: Product) -> None:
    """The new release brings a migration; so the rollback proves that the release before runs on the new schema."""
    before = served(host)
    number = len(list((product.folder / "sql/migrations").glob("*.sql"))) + 1
    migration = {f"sql/migrations/{number:04}_{before[:6]}.sql": "create table expanded (id bigint primary key);\n"}
    version = product.release(migration)
    slow = send_nap(host, 20.0)
    with load(host):
        told = product.make("deploy")
    assert "Backup: " in told
    assert served(host) == version
    # Twenty seconds are more than the grace time: it was handed back to the new workers, and charged once.
    assert query(host, f"select status, attempts <= 1 from events where event_id = '{slow}'") == "succeeded|t"
    assert query(host, "select to_regclass('expanded') is not null") == "t"
    with load(host):
        product.make("rollback")
    assert served(host) == before
    containers = host.ssh("docker ps -a --format '{{.Names}} {{.Image}}' -f name=web -f name=worker").split("\n")
    assert {each.split(":")[-1] for each in containers if each} == {before}, "the new release has gone"


def send_nap(host: Host, seconds: float) -> str:
    event = json.dumps({"type": "nap.wanted", "data": {"seconds": seconds}})
    told: dict[str, Any] = json.loads(curl(host, "/events", "--json", event, code=False))
    return str(told["event_id"])


def test_what_can_not_go_well_is_refused_with_the_old_release_serving(host: Host, product: Product) -> None:
    before = served(host)
    number = len(list((product.folder / "sql/migrations").glob("*.sql"))) + 1
    with load(host):
        product.release({f"sql/migrations/{number:04}_bad.sql": "create table half (id bigint);\nselect 1 / 0;\n"})
        assert "division by zero" in product.make("deploy", fails=True)
        product.withdraw()
        product.release({"service/__main__.py": "import time\n\ntime.sleep(600)\n"})
        assert "is not ready" in product.make("deploy", fails=True)
        product.withdraw()
        host.ssh(f"flock -o {THERE}/lock sleep 120 >/dev/null 2>&1 & echo $! > /run/first; sleep 0.2")
        assert "Another one is at work" in product.make("deploy", fails=True)
        host.ssh("kill $(cat /run/first)")
    assert query(host, "select to_regclass('half') is null") == "t"
    assert served(host) == before
    assert len(host.ssh("docker ps -aq -f name=web -f name=worker").split()) == 2


def test_after_a_power_cut_it_serves_again_by_itself(host: Host, product: Product) -> None:
    version, events = served(host), query(host, "select count(*) from events")
    slow = send_nap(host, 3.0)
    host.cut_power()
    host.boot()
    until(lambda: curl(host, "/types") == "200", 60)
    assert served(host) == version
    assert int(query(host, "select count(*) from events")) == int(events) + 1
    until(lambda: query(host, f"select status from events where event_id = '{slow}'") == "succeeded", 60)


def test_a_backup_is_whole_and_comes_back_without_redis(host: Host, product: Product) -> None:
    query(
        host,
        "insert into documents (collection, id, text, embedding) "
        "values ('kept', 'a', 'a', '[1,2,3]'), ('kept', 'b', 'b', '[3,2,1]')",
    )
    product.make("backup")
    kept = query(host, "select count(*) from events")
    assert "search: ok" in product.make("restore-check")
    late = send_nap(host, 0.0)
    dump = host.ssh(f"cd {THERE} && find backups -name '*.dump' | sort | tail -n 1").strip()
    host.ssh(f"{THERE}/host.sh restore {dump}", timeout_s=180)
    assert query(host, "select count(*) from events") == kept
    assert query(host, f"select count(*) from events where event_id = '{late}'") == "0"
    again = send_nap(host, 0.1)
    until(lambda: query(host, f"select status from events where event_id = '{again}'") == "succeeded", 60)


def test_the_probe_sees_a_killed_container(host: Host, product: Product) -> None:
    """The control of all that is above: without a lame duck and a second colour, somebody is failed."""
    live = host.ssh(f"tail -n 1 {THERE}/releases | cut -d ' ' -f 3").strip()
    with load(host, hurts=True):
        until(
            lambda: int(query(host, "select count(*) from events where accepted_at > now() - interval '1 second'")) > 0,
            20,
        )
        host.ssh(
            f"docker kill -s KILL callboard-web-{live}-1 && sleep 1 && docker start callboard-web-{live}-1 && sleep 2"
        )
    until(lambda: curl(host, "/types") == "200", 60)
