"""The release before this one, on the schema of this one: what a rollback needs, with what really changed."""

import shutil
import subprocess
from typing import Final

import pytest

from tests.deploy.host import THERE, Host, run
from tests.deploy.product import NAPS, Product, load, query, send_nap, served, succeeded
from tests.processes import ROOT

pytestmark = pytest.mark.host

CODE: Final = ("schemas", "prompts", "sql", "service", "workers", "pyproject.toml", "requirements.lock")


def release_before() -> str | None:
    """The last commit with another schema than that of today; where there is none yet, the first that has this test."""
    found, schema = None, tree("HEAD", "sql/migrations")
    for commit in run("git", "rev-list", "--first-parent", "--skip=1", "HEAD", cwd=ROOT).split():
        if not tree(commit, "tests/deploy/test_upgrade.py"):
            break
        found = commit
        if tree(commit, "sql/migrations") != schema:
            break
    return found


def tree(commit: str, path: str) -> str:
    done = subprocess.run(["git", "rev-parse", "-q", "--verify", f"{commit}:{path}"], cwd=ROOT, capture_output=True)
    return done.stdout.decode()


def test_the_release_before_runs_on_the_schema_of_this_one(host: Host, product: Product) -> None:
    before, now = release_before(), product.version()
    if before is None:
        pytest.skip("the history of this clone holds no release before this one")
    for name in CODE[:5]:
        shutil.rmtree(product.folder / name)
    archive = f"git archive {before} {' '.join(CODE)} | tar -x -C {product.folder}"
    run("sh", "-c", archive, cwd=ROOT)
    version = product.release(NAPS)
    with load(host):
        product.make("deploy")
    assert served(host) == version
    product.withdraw()
    with load(host):
        product.make("deploy")
    assert served(host) == now


def test_another_major_version_of_postgres(host: Host, product: Product) -> None:
    """One that does not start is taken back; with the next the events are there, and the roles that rotation made."""
    host.ssh("docker load -q -i /images/postgres18.tar")  # which may have been thrown away as unused
    product.make("rotate", "NAME=postgres")
    assert "What was there serves again" in upgrade(host, "localhost/redis:test", "|| true")
    assert query(host, "show server_version_num").startswith("17")
    succeeded(host, send_nap(host, 0.1))
    events = query(host, "select count(*), max(event_id::text) from events")
    assert "PostgreSQL 18" in upgrade(host, "localhost/postgres18:test")
    assert query(host, "select count(*), max(event_id::text) from events") == events
    assert query(host, "show server_version_num").startswith("18")
    succeeded(host, send_nap(host, 0.1))
    with load(host):
        product.make("deploy")
    product.make("rotate", "NAME=postgres")
    assert "search: " in product.make("restore-check")


def upgrade(host: Host, image: str, otherwise: str = "") -> str:
    return host.ssh(f"{THERE}/host.sh upgrade-postgres {image} 2>&1 {otherwise}", timeout_s=300)
