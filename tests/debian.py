"""Programs from Debian's own packages, unpacked and not installed: nothing of them starts by itself."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final, NoReturn

import pytest

PRIVATE: Final = ("-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root")
TIMEOUT_S: Final = 120
REDIS: Final = ("redis-server", "redis-tools", "libatomic1", "libjemalloc2", "liblzf1")


def unpacked(folder: Path, *packages: str) -> Path:
    """The packages, unpacked below `folder` as Debian lays them out, links and all.

    Skips the test where they can't be had, and fails it in CI.
    """
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        without("no apt-get and dpkg here")
    downloads = folder / "downloads"
    downloads.mkdir(parents=True)
    if _apt(downloads, "download", *packages).returncode:
        lists = _private_lists(downloads)
        done = _apt(downloads, *lists, "update")
        if done.returncode == 0:
            done = _apt(downloads, *lists, "download", *packages)
        if done.returncode:
            without(f"{', '.join(packages)} can't be downloaded: {done.stderr.strip()}")
    for package in downloads.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, folder], check=True, timeout=TIMEOUT_S)
    return folder


def libraries(root: Path) -> str:
    """The value of LD_LIBRARY_PATH with which the programs below `root` find the libraries there."""
    return ":".join(sorted({str(path.parent) for path in (root / "usr" / "lib").rglob("*.so*")}))


def redis_environment(folder: Path) -> dict[str, str]:
    """The environment of somebody who has installed redis-server: it is on PATH, a link to redis-check-rdb."""
    root = unpacked(folder, *REDIS)
    server = root / "usr" / "bin" / "redis-server"
    assert server.is_symlink(), "Debian has changed its package"
    return {"PATH": f"{server.parent}:{os.environ['PATH']}", "LD_LIBRARY_PATH": libraries(root)}


def _private_lists(folder: Path) -> list[str]:
    """Where this user may not write to Debian's own lists, or has none."""
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True)
    return ["-o", f"Dir::State::Lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}"]


def _apt(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["apt-get", *PRIVATE, "-qq", *words], cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def without(why: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
