"""The release before this one, on the schema of this one: what a rollback needs, with what really changed."""

import shutil
import subprocess
from typing import Final

import pytest

from tests.deploy.host import Host, run
from tests.deploy.product import NAPS, Product, load, served
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
