"""Deployments, rollbacks and what is refused, under load: nobody is failed."""

from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.deploy.host import THERE, Host, until
from tests.deploy.product import (
    Product,
    attacked,
    configure,
    containers,
    curl,
    ended,
    live,
    load,
    query,
    send_nap,
    served,
    succeeded,
)

pytestmark = pytest.mark.host

WORKERS: Final = 2
NEVER_READY: Final = "import time\n\ntime.sleep(600)\n"


def test_a_deployment_and_its_rollback_fail_nobody(host: Host, product: Product) -> None:
    """The new release brings a migration; so the rollback proves that the release before runs on the new schema. While
    it is at work another tenant does what it can."""
    before = served(host)
    host.ssh(f"{THERE}/host.sh scale 3")
    assert len(containers(host, "worker")) == 3
    for container in containers(host, "worker"):
        until(partial(healthy, host, container), 60)
    configure(host, WORKERS=str(WORKERS))
    migration = product.next_migration("expanded")
    version = product.release({migration: "create table expanded (id bigint primary key);\n"})
    slow = send_nap(host, 20.0)
    with load(host):
        output = product.make("deploy")
    assert "Backup: " in output
    assert served(host) == version
    # Twenty seconds are more than the grace time: it was handed back to the new workers, and charged once.
    assert query(host, f"select status, attempts <= 1 from events where event_id = '{slow}'") == "succeeded|t"
    assert query(host, "select to_regclass('expanded') is not null") == "t"
    with load(host), attacked(host):
        product.make("rollback")
    assert served(host) == before
    only_runs(host, before)


def healthy(host: Host, worker: str) -> bool:
    return "ready" in host.ssh(f"docker exec {worker} python3 -m workers health")


def only_runs(host: Host, version: str) -> None:
    """One API and its workers, of this release."""
    images = host.ssh("docker ps -a --format '{{.Image}}' -f name=web -f name=worker").split()
    workers = host.ssh(f"sed -n 's/^WORKERS=//p' {THERE}/settings").split() or ["1"]
    assert images == [f"localhost/callboard:{version}"] * (1 + int(workers[-1]))


def test_what_can_not_go_well_is_refused_with_the_old_release_serving(host: Host, product: Product) -> None:
    before = served(host)
    with load(host):
        product.release({"Caddyfile": "nonsense {\n"})
        assert "The proxy would not start" in product.make("deploy", fails=True)
        product.withdraw()
        product.release({product.next_migration("bad"): "create table half (id bigint);\nselect 1 / 0;\n"})
        assert "division by zero" in product.make("deploy", fails=True)
        product.withdraw()
        product.release({"service/__main__.py": NEVER_READY})
        first = product.start("deploy")
        until(lambda: "busy" in host.ssh(f"flock -n {THERE}/lock true || echo busy"), 90)
        assert "Another one is at work: take " in product.make("deploy", fails=True)
        assert "Another one is at work: take " in product.make("rollback", fails=True)
        assert "is not ready" in ended(first, fails=True)
        product.withdraw()
    assert query(host, "select to_regclass('half') is null") == "t"
    assert served(host) == before
    only_runs(host, before)


def test_a_release_that_needs_a_stop_and_fails_brings_back_the_old_one(host: Host, product: Product) -> None:
    """Its migration has run by then: the database is as it was, with all that was taken in before."""
    before = served(host)
    migration = product.next_migration("changed")
    renamed = "-- stop: a test of it.\nalter table work rename column cause to reason;\n"
    product.release({migration: renamed, "service/__main__.py": NEVER_READY})
    with load(host, all_stop=True):
        output = product.make("deploy", fails=True)
    product.withdraw()
    assert f"All stop: {Path(migration).name} changes what {before} reads and writes" in output
    assert "The database as it was: backups/" in output
    assert served(host) == before
    assert query(host, "select count(*) from migrations where name like '%_changed.sql'") == "0"
    only_runs(host, before)
    succeeded(host, send_nap(host, 0.1))


def test_without_a_providers_key_nothing_is_deployed(host: Host, product: Product) -> None:
    before = live(host)
    secret = host.ssh(f"cat {THERE}/secrets/app/anthropic_api_key")
    host.ssh(f"{THERE}/host.sh secret anthropic_api_key </dev/null")
    configure(host, CALLBOARD_SIMULATE="off")
    told = product.make("deploy", fails=True).strip().splitlines()
    assert 'No provider of the model alias "fast" can be asked: set OPENAI_API_KEY or ANTHROPIC_API_KEY' in told[-2]
    configure(host, CALLBOARD_SIMULATE="on")
    host.ssh(f"printf %s {secret} | {THERE}/host.sh secret anthropic_api_key")
    assert live(host) == before


def test_the_probe_sees_a_killed_container(host: Host, product: Product) -> None:
    """The control of all that is above: without a lame duck and a second colour, somebody is failed."""
    accepted = "select count(*) > 0 from events where accepted_at > now() - interval '1 second'"
    with load(host, hurts=True):
        until(lambda: query(host, accepted) == "t", 20)
        host.ssh(f"docker kill -s KILL {live(host)} && sleep 1 && docker start {live(host)} && sleep 2")
    until(lambda: curl(host, "/types") == "200", 60)
