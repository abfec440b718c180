"""A release built by podman, and by Docker; all the others are buildah's."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.deploy.host import BASE, Host, run, until
from tests.deploy.product import Product, ended, served

pytestmark = pytest.mark.host

# An engine without a network of its own, which would change what this machine filters; a build shares this machine's.
ENGINE: Final = """for each in /sys/fs/cgroup /sys/fs/cgroup/*; do mount -o remount,bind,rw $each 2>/dev/null; done
exec dockerd --data-root "$1/data" --exec-root "$1/run" -p "$1/pid" -H "unix://$1/socket" \
    --bridge=none --iptables=false --ip6tables=false --ip-forward=false"""
CLIENT: Final = """#!/bin/sh
[ "$1" != build ] || { shift; set -- build --network=host "$@"; }
exec /usr/bin/docker "$@"
"""


def test_podman_builds_it(host: Host, product: Product) -> None:
    version = product.release({})
    assert f"callboard:{version} with podman" in ended(product.start("deploy", BUILD="podman"))
    assert served(host) == version


def test_docker_builds_it(host: Host, product: Product, tmp_path: Path) -> None:
    version = product.release({})
    with docker(host, tmp_path) as env:
        assert f"callboard:{version} with docker" in ended(product.start("deploy", **env))
    assert served(host) == version


@contextmanager
def docker(host: Host, folder: Path) -> Iterator[dict[str, str]]:
    """An engine on this machine, which has the stand-in of Debian's image; what finds it."""
    (folder / "bin").mkdir()
    (folder / "bin/docker").write_text(CLIENT)
    (folder / "bin/docker").chmod(0o755)
    env = {"DOCKER_HOST": f"unix://{folder}/socket", "PATH": f"{folder}/bin:{os.environ['PATH']}", "BUILD": "docker"}
    with (folder / "log").open("wb") as log:
        engine = subprocess.Popen(["unshare", "-m", "sh", "-c", ENGINE, "sh", str(folder)], stdout=log, stderr=log)
    try:
        until(lambda: bool(run("docker", "info", env=env)), 60)
        run("docker", "import", str(host.work / "base.tar"), BASE, env=env)
        yield env
    finally:
        engine.send_signal(signal.SIGTERM)
        engine.wait(60)
