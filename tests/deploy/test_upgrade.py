"""The release before this one, on the schema of this one: what a rollback needs, with what really changed."""

import os
import shlex
import shutil
import subprocess
from typing import Final

import pytest

from tests.deploy.host import THERE, Host, run, until
from tests.deploy.product import NAPS, Product, containers, curl, live, load, query, send_nap, served, succeeded
from tests.processes import ROOT

pytestmark = pytest.mark.host

RELEASE: Final = "a47cee6bb21f67ae63f8dbb67db9fd2dda078de5"  # 0.1
NEXT: Final = "localhost/postgres18:test"
# The restore can't begin.
HELD: Final = "begin; lock table pg_database in share mode; select pg_sleep(600)"
WAITING: Final = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query ilike 'drop database%'"
ROLES: Final = (
    "select distinct r.rolname, r.rolsuper from pg_stat_activity a join pg_roles r on r.rolname = a.usename"
    " where application_name like 'callboard %' and application_name <> 'callboard migrate'"
)
CODE: Final = (
    "schemas",
    "prompts",
    "sql",
    "service",
    "workers",
    "deploy/Dockerfile",
    "pyproject.toml",
    "requirements.lock",
)


def release_before() -> str | None:
    """What users have, not what main held between two releases; None where the history of this clone is cut."""
    return RELEASE if tree(RELEASE, "sql/migrations") else None


def tree(commit: str, path: str) -> str:
    done = subprocess.run(["git", "rev-parse", "-q", "--verify", f"{commit}:{path}"], cwd=ROOT, capture_output=True)
    return done.stdout.decode()


def test_the_release_before_runs_on_the_schema_of_this_one(host: Host, product: Product) -> None:
    before, now = release_before(), product.version()
    if before is None:
        why = "the history of this clone holds no release before this one"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    for name in CODE[:5]:
        shutil.rmtree(product.folder / name)
    archive = f"git archive {before} {' '.join(CODE)} | tar -x -C {product.folder}"
    run("sh", "-c", archive, cwd=ROOT)
    version = product.release(NAPS)
    with load(host):
        product.make("deploy")
    assert served(host) == version
    as_one_role(host)
    product.withdraw()
    with load(host):
        output = product.make("deploy")
    assert served(host) == now
    assert "a role of their own in Postgres" in output
    assert query(host, ROLES) == "callboard_runner|f"
    assert query(host, "select count(*) from pg_auth_members where roleid = 'callboard'::regrole") == "0"
    owner = host.ssh(f"sed 's/@postgres/@127.0.0.1/' {THERE}/secrets/database_owner_url").strip()
    assert host.ssh(f"docker exec callboard-postgres-1 psql {owner} -Atc 'select session_user'").strip() == "callboard"


def as_one_role(host: Host) -> None:
    """What serves is as 0.1 left it behind a new password: one of two roles in turn, which act as the administrator."""
    password = os.urandom(12).hex()
    statements = (
        f"create role callboard_a login password '{password}' in role callboard;"
        " alter role callboard_a set role callboard; alter role callboard password null"
    )
    query(host, "drop role if exists callboard_a, callboard_b")
    query(host, statements)
    secrets = f"{THERE}/secrets"
    url = f"postgresql://callboard_a:{password}@postgres:5432/callboard"
    for name, text in (("database_url", url), ("database_owner_url", "")):
        host.ssh(f"printf %s '{text}' > {secrets}/new && chmod 444 {secrets}/new && mv {secrets}/new {secrets}/{name}")
    host.ssh(f"docker restart {live(host)} {' '.join(containers(host, 'worker'))}", timeout_s=120)
    until(lambda: curl(host, "/types") == "200", 60)
    query(host, "drop database if exists callboard_before with (force)")  # a restore's, with rights of its own
    query(host, "drop owned by callboard_runner; drop role callboard_runner")
    succeeded(host, send_nap(host, 0.1))


def test_another_major_version_of_postgres(host: Host, product: Product) -> None:
    """One that does not start stops nothing, and Ctrl-C is undone. Cut off before the switch, what was there serves by
    itself; behind it, the same again goes on. Then the events are there, and the roles that rotation made."""
    host.ssh("docker load -q -i /images/postgres18.tar")  # which may have been thrown away as unused
    product.make("rotate", "NAME=postgres")
    running = since(host)
    assert "What was there serves" in upgrade(host, "localhost/redis:test", "|| true")
    assert since(host) == running
    stops = all_stops(host)
    begin_upgrade(host)
    until(lambda: all_stops(host) > stops, 120)
    host.ssh("kill -INT -- -$(systemctl show -P MainPID upgrade)")  # the group, as a terminal does
    until(lambda: "What was there serves" in host.ssh(f"tail -n 1 {THERE}/log"), 120)
    assert curl(host, "/types") == "200"
    begin_upgrade(host)
    until(lambda: "accepting" in next_one(host, "pg_isready"), 120)
    next_one(host, f"psql -U callboard postgres -c {shlex.quote(HELD)}", "-d")
    until(lambda: next_one(host, f"psql -XAtU callboard postgres -c {shlex.quote(WAITING)}").strip() == "1", 120)
    host.cut_power()
    host.boot()
    until(lambda: curl(host, "/types") == "200", 120)
    assert query(host, "show server_version_num").startswith("17")
    assert "was cut off" in product.make("status")
    succeeded(host, send_nap(host, 0.1))
    events = query(host, "select count(*), max(event_id::text) from events")
    begin_upgrade(host)
    until(lambda: "yes" in host.ssh(f"! grep -q POSTGRES_VOLUME=. {THERE}/settings || echo yes"), 180)
    host.ssh("systemctl kill -s KILL upgrade")
    assert "PostgreSQL 18" in upgrade(host, NEXT)
    assert query(host, "select count(*), max(event_id::text) from events") == events
    assert query(host, "show server_version_num").startswith("18")
    assert not host.ssh("docker ps -aqf name=postgres-next")
    assert len(host.ssh("docker volume ls -q | grep postgres").split()) == 2
    succeeded(host, send_nap(host, 0.1))
    with load(host):
        product.make("deploy")
    product.make("rotate", "NAME=postgres")
    assert "search: " in product.make("restore-check")


def since(host: Host) -> str:
    return host.ssh(f"docker inspect -f '{{{{.State.StartedAt}}}}' callboard-postgres-1 {live(host)}")


def all_stops(host: Host) -> int:
    """How often that was said so far. It is the log's last line for as long as nothing has stopped, which is short."""
    return int(host.ssh(f"grep -c 'All stop' {THERE}/log || true"))


def begin_upgrade(host: Host) -> None:
    """Where one that was interrupted has gone."""
    host.ssh(
        "while systemctl -q is-active upgrade; do sleep 0.2; done; "
        f"systemd-run -q --collect --unit upgrade {THERE}/host.sh upgrade-postgres {NEXT}"
    )


def next_one(host: Host, command: str, options: str = "") -> str:
    """What the server beside the old one answers."""
    return host.ssh(f"docker exec {options} callboard-postgres-next {command}")


def upgrade(host: Host, image: str, otherwise: str = "") -> str:
    return host.ssh(f"{THERE}/host.sh upgrade-postgres {image} 2>&1 {otherwise}", timeout_s=300)
