"""The second machine, and a first release that serves there: both made once, for all tests of this folder."""

import os
import shlex
import shutil
from collections.abc import Iterator
from typing import Final

import pytest

from tests.deploy.authority import Authority, authority
from tests.deploy.host import SITE, STANDINS, THERE, Host, machine, run
from tests.deploy.product import NAPS, SECRET, Product, configure
from tests.processes import ROOT

SETTINGS: Final = {
    "SITE": SITE,
    "CALLBOARD_SIMULATE": "on",
    "CALLBOARD_GRACE_S": "8",
    "READY_S": "40",
    **{variable: f"localhost/{name}:test" for name, variable in STANDINS.items()},
}


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with machine(tmp_path_factory.mktemp("machine"), os.environ.get("MACHINE", f"callboard-{os.getpid()}")) as made:
        made.ssh("for each in /images/*.tar; do docker load -q -i $each; done", timeout_s=300)
        yield made


@pytest.fixture(scope="session", name="authority")
def who_gives_certificates(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    with authority(host, tmp_path_factory.mktemp("authority")) as made:
        yield made


@pytest.fixture(scope="session")
def product(host: Host, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
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
    configure(host, **SETTINGS)
    host.ssh(f"printf %s {shlex.quote(SECRET)} | {THERE}/host.sh secret anthropic_api_key")
    made.make("deploy")
    yield made
    shutil.rmtree(folder)
