"""deploy/swarm over two machines, with the commands of deploy/scaling.md: what is promised, under load."""

import os
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from tests.deploy.host import SITE, THERE, run, until
from tests.deploy.product import NAPS, Product, curl, probed, send_nap
from tests.deploy.two_hosts import DATABASE_URL, INSIDE, REDIS_URL, Pair, machines
from tests.processes import ROOT

pytestmark = pytest.mark.swarm

SLOWEST_S: Final = 5.0
SECRETS: Final = {"database_url": DATABASE_URL, "redis_url": REDIS_URL, "anthropic_api_key": "sk-none"}
SETTINGS: Final = (
    f"SITE={SITE}\nCADDY_IMAGE=localhost/proxy:test\nCALLBOARD_SIMULATE=on\nCALLBOARD_GRACE_S=8\nREADY_S=15\n"
    "SERVERS=elsewhere\n"
)
# What the page has the manager do for each release.
RELEASE: Final = re.findall(
    r"^```bash\n(cd /srv/callboard.*?)^```", (ROOT / "deploy/scaling.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
)[0]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    name = os.environ.get("MACHINE", f"callboard-{os.getpid()}")
    with machines(tmp_path_factory.mktemp("machines"), name) as made:
        for host in (made.one, made.two):
            host.ssh("docker load -q -i /images/proxy.tar", timeout_s=120)
        made.one.ssh(f"docker swarm init --advertise-addr {INSIDE[0]}")
        token = made.one.ssh("docker swarm join-token -q worker").strip()
        made.two.ssh(f"docker swarm join --token {token} {INSIDE[0]}:2377")
        yield made


@pytest.fixture(scope="module")
def product(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Product:
    """A first release runs."""
    folder = tmp_path_factory.mktemp("clone")
    run("git", "clone", "-q", str(ROOT), str(folder))
    made = Product(folder, pair.one)
    for host in (pair.one, pair.two):
        Product(folder, host).make("bootstrap")
    for name, value in SECRETS.items():
        pair.one.ssh(f"printf %s {value} | {THERE}/host.sh secret {name}")
    pair.one.ssh(f"printf %s {shlex.quote(SETTINGS)} > {THERE}/settings")
    pair.one.ssh(
        f"cd {THERE}/certs && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 2 "
        f"-subj /CN={SITE} -addext subjectAltName=DNS:{SITE} -keyout tls.key -out tls.crt 2>/dev/null"
    )
    release(pair, made, NAPS)
    until(lambda: curl(pair.one, "/types") == "200", 60)
    return made


def release(pair: Pair, product: Product, files: dict[str, str]) -> str:
    """Commit these and bring them out; returns the version."""
    version = product.release(files)
    for host in (pair.one, pair.two):
        Product(product.folder, host).make("ship")
    print(pair.one.ssh(f"export VERSION={version}; bash -euc {shlex.quote(RELEASE)}", timeout_s=300))
    return version


def running(pair: Pair) -> dict[str, list[str]]:
    """Of each service the versions that run, and where."""
    columns = "{{.Name}} {{.Image}} {{.Node}} {{.CurrentState}}"
    told = pair.one.ssh(f"docker stack ps callboard -f desired-state=running --format '{columns}'")
    found: dict[str, list[str]] = {"proxy": [], "api": [], "worker": []}
    for name, image, node, state in (line.split(maxsplit=3) for line in told.splitlines()):
        if state.startswith("Running"):
            found[name.split(".")[0].removeprefix("callboard_")].append(f"{image.split(':')[-1]} {node}")
    return found


def nodes(pair: Pair, name: str) -> list[str]:
    return sorted(each.split()[1] for each in running(pair)[name])


def all_on_one(pair: Pair) -> bool:
    return nodes(pair, "api") == nodes(pair, "worker") == ["box", "box"]


@contextmanager
def load(pair: Pair, *, hurts: bool = False) -> Iterator[None]:
    """The probe at the first machine, as long as the block lasts; it must have seen no failure, unless it `hurts`."""
    with probed(pair.one, streams=True) as found:
        yield
    (seen,) = found
    print(*seen.failures, sep="\n")
    assert hurts or not seen.failed
    assert hurts or seen.slowest_s < SLOWEST_S
    until(lambda: pair.query("select count(*) from events where finished_at is null") == "0", 60)
    assert pair.query("select count(*) from events where status <> 'succeeded' or attempts > 1") == "0"
    assert not set(seen.events) - set(pair.query("select event_id from events").split())


def test_it_is_spread_and_may_do_nothing_that_it_need_not(pair: Pair, product: Product) -> None:
    assert [nodes(pair, name) for name in ("proxy", "api", "worker")] == [["box", "two"]] * 3
    assert [curl(pair.one, path) for path in ("/healthz", "/readyz", "/metrics")] == ["404"] * 3
    for name in ("api", "worker"):
        container = pair.two.ssh(f"docker ps -q -f name=callboard_{name}").strip()
        status = pair.two.ssh(f"docker exec {container} python3 -c \"print(open('/proc/self/status').read())\"")
        for line in (r"Uid:\s+10001\s+10001", r"CapBnd:\s+0+$", r"NoNewPrivs:\s+1"):
            assert re.search(f"^{line}", status, re.MULTILINE), line
        assert "Read-only file system" in pair.two.ssh(f"docker exec {container} touch /app/x 2>&1 || true")
    shown = pair.two.ssh("docker inspect $(docker ps -q)")
    shown += pair.one.ssh("docker service inspect $(docker service ls -q)")
    assert not [secret for secret in SECRETS.values() if secret in shown]


def test_a_rolling_update_fails_nobody(pair: Pair, product: Product) -> None:
    before = {each.split()[0] for each in running(pair)["api"]}
    number = len(list((product.folder / "sql/migrations").glob("*.sql"))) + 1
    migration = {f"sql/migrations/{number:04}_expanded.sql": "create table expanded (id bigint primary key);\n"}
    slow = send_nap(pair.one, 20.0)
    with load(pair):
        version = release(pair, product, migration)
        assert {each.split()[0] for each in running(pair)["api"] + running(pair)["worker"]} == {version} != before
        assert nodes(pair, "api") == nodes(pair, "worker") == ["box", "two"]
    assert pair.query(f"select status, attempts <= 1 from events where event_id = '{slow}'") == "succeeded|t"


def test_a_release_that_never_gets_ready_goes_back_by_itself(pair: Pair, product: Product) -> None:
    before = running(pair)["api"][0].split()[0]
    with load(pair):
        release(pair, product, {"service/__main__.py": "import time\n\ntime.sleep(600)\n"})
        state = pair.one.ssh("docker service inspect -f '{{.UpdateStatus.State}}' callboard_api").strip()
        assert state == "rollback_completed"
        assert [each.split()[0] for each in running(pair)["api"]] == [before] * 2
    product.withdraw()


def test_a_host_that_is_emptied_fails_nobody(pair: Pair, product: Product) -> None:
    with load(pair):
        pair.one.ssh("docker node update --availability drain two")
        until(lambda: all_on_one(pair), 90)
        until(lambda: not pair.two.ssh("docker ps -q"), 60)
    pair.one.ssh("docker node update --availability active two")


def test_what_a_dead_host_had_in_hand_goes_on_elsewhere(pair: Pair, product: Product) -> None:
    for count in (4, 2):
        pair.one.ssh(f"docker service scale callboard_api={count} callboard_worker={count}", timeout_s=120)
    until(lambda: nodes(pair, "api") == nodes(pair, "worker") == ["box", "two"], 60)
    until(lambda: len(pair.two.ssh("docker ps -q -f name=callboard_worker").split()) == 1, 60)
    there = pair.two.ssh("docker ps -q -f name=callboard_worker").strip()
    naps = [send_nap(pair.one, 6.0) for _ in range(12)]
    in_hand = f"select count(*) from work w join workers using (worker) where w.status = 'running' and host = '{there}'"
    until(lambda: int(pair.query(in_hand)) > 0, 20)
    print(f"    {pair.query(in_hand)} in hand")
    with load(pair, hurts=True):
        pair.two.cut_power()
        begun = time.monotonic()
        names = ", ".join(f"'{nap}'" for nap in naps)
        open_ones = f"select count(*) from events where finished_at is null and event_id in ({names})"
        until(lambda: pair.query(open_ones) == "0", 60)
        print(f"    all went on after {time.monotonic() - begun:.1f} s")
    with load(pair):
        until(lambda: all_on_one(pair), 90)
        print(f"    two of each again after {time.monotonic() - begun:.1f} s")
