"""From the release before this one, with what really changed: all stop for it, and nothing is lost."""

import json
import os
import re
import shlex
import shutil
import subprocess
from typing import Final

import pytest

from tests.deploy.host import THERE, Host, run, until
from tests.deploy.product import (
    FILLED,
    NAPS,
    SECRET,
    Product,
    configure,
    curl,
    live,
    load,
    query,
    send_nap,
    served,
    succeeded,
)
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
    *("schemas", "prompts", "sql", "service", "workers", "deploy"),
    *("pyproject.toml", "requirements.lock", "Caddyfile"),
)
EVENTS: Final = 100_000
# Of each status a quarter; those that are open fall due another day. Each was snoozed once.
FILL: Final = f"""
    insert into events (event_id, source, id, type, data, status, finished_at)
    select gen_random_uuid(), '{FILLED}', n::text, 'nap.wanted', '{{"seconds": 0}}',
           (array['open', 'succeeded', 'dead', 'cancelled'])[n % 4 + 1], case when n % 4 > 0 then now() end
    from generate_series(1, {EVENTS}) as n;
    insert into work (event_id, tenant, status, due_at, put_offs, waits_for)
    select event_id, tenant, 'scheduled', now() + interval '1 day', 1, 'openai/model' from events
    where source = '{FILLED}' and status = 'open';
    insert into attempts (event_id, claim, run, attempt, started_at, finished_at, outcome)
    select event_id, 1, 1, 1, now(), now(), 'put_off' from events where source = '{FILLED}';
"""
COUNTS: Final = (
    f"select e.status, w.status, count(*) from events e left join work w using (event_id) where source = '{FILLED}'"
    " group by 1, 2 order by 1, 2"
)
STATUSES: Final = ("scheduled", "succeeded", "dead", "cancelled")


def release_before() -> str | None:
    """What users have, not what main held between two releases; None where the history of this clone is cut."""
    return RELEASE if tree(RELEASE, "sql/migrations") else None


def tree(commit: str, path: str) -> str:
    done = subprocess.run(["git", "rev-parse", "-q", "--verify", f"{commit}:{path}"], cwd=ROOT, capture_output=True)
    return done.stdout.decode()


def test_the_release_before_is_stopped_for_this_one(host: Host, product: Product) -> None:
    """It can't run on this schema: callers are told when to come again, nothing is lost, and a rollback is refused."""
    before, now = release_before(), product.version()
    if before is None:
        why = "the history of this clone holds no release before this one"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    version = begin_with(host, product, before)
    query(host, FILL)
    counts = query(host, COUNTS)
    with load(host, all_stop=True):
        output = product.make("deploy")
    assert served(host) == now
    assert "All stop: 0023_field_words.sql" in output
    seconds = re.search(r"Nothing was taken in and nothing ran for (\d+) s", output)
    assert seconds
    print(f"    with {EVENTS:,} events nothing ran for {seconds[1]} s")
    assert query(host, COUNTS) == counts
    readable(host)
    assert f"{version} can't run on the schema that is there" in product.make("rollback", fails=True)
    assert served(host) == now
    assert "a role of their own in Postgres" in output
    assert query(host, ROLES) == "callboard_runner|f"
    assert query(host, "select count(*) from pg_auth_members where roleid = 'callboard'::regrole") == "0"
    owner = host.ssh(f"sed 's/@postgres/@127.0.0.1/' {THERE}/secrets/database_owner_url").strip()
    assert host.ssh(f"docker exec callboard-postgres-1 psql {owner} -Atc 'select session_user'").strip() == "callboard"


def begin_with(host: Host, product: Product, commit: str) -> str:
    """The host as that release leaves it, deployed by its own scripts, behind a new password: one of two roles in turn,
    which act as the administrator. Returns its version; the tree is that of today again."""
    host.ssh(
        "docker ps -aq | xargs docker rm -fv; docker volume ls -q | grep -E 'postgres|redis' | xargs docker volume rm"
    )
    host.ssh(f"cd {THERE} && rm -rf secrets releases backups host.sh compose.yaml && sed -i '/^POSTGRES_/d' settings")
    configure(host, POSTGRES_IMAGE="localhost/postgres:test")
    for name in CODE:
        shutil.rmtree(product.folder / name) if (product.folder / name).is_dir() else (product.folder / name).unlink()
    run("sh", "-c", f"git archive {commit} {' '.join(CODE)} | tar -x -C {product.folder}", cwd=ROOT)
    version = product.release(NAPS)
    product.make("bootstrap")
    host.ssh(f"printf %s {shlex.quote(SECRET)} | {THERE}/host.sh secret anthropic_api_key")
    product.make("deploy")
    product.make("rotate", "NAME=postgres")
    assert served(host) == version
    succeeded(host, send_nap(host, 0.1))
    product.withdraw()
    return version


def readable(host: Host) -> None:
    """Events of every status, by the API."""
    for status in STATUSES:
        page = json.loads(curl(host, f"/events?source={FILLED}&status={status}&limit=500", code=False))
        assert len(page["items"]) == 500, status
        event = json.loads(curl(host, f"/events/{page['items'][0]['event_id']}", code=False))
        assert event["status"] == status
        assert "snoozed" in [moment["what"] for moment in event["timeline"]]


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
