"""`make refresh` takes newer images than the first day's; a digest in the settings is kept. Docker is a stub here."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.processes import ROOT

PARTS: Final = ("schemas", "prompts", "sql", "service", "workers")
STUB: Final = r"""#!/bin/sh
echo "${0##*/} $*" >> "$CALLS"
case "$*" in
    *"config --images postgres"*) echo docker.io/pgvector/pgvector:pg17 ;;
    *"config --images redis"*) echo docker.io/library/redis@sha256:abc ;;
    *"config --images proxy"*) echo docker.io/library/caddy:2.11 ;;
    "image inspect"*) echo "$5@sha256:new" ;;
    "load"*) exit 1 ;; # from here on it is a deployment
    "pull"*pgvector*) exit "${PULLS:-0}" ;;
esac
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What was called, of docker, ssh and rsync, which do nothing."""
    (tmp_path / "bin").mkdir()
    for name in ("docker", "ssh", "rsync"):
        (tmp_path / "bin" / name).write_text(STUB)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def there(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """`host.sh refresh`, on a host with these settings."""
    folder.mkdir()
    shutil.copy(ROOT / "deploy/host.sh", folder)
    (folder / "settings").write_text("".join(f"{each}\n" for each in settings))
    (folder / "next").mkdir()
    (folder / "next" / "Caddyfile").touch()
    words = ["bash", str(folder / "host.sh"), "refresh", "v2"]
    return subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)


def pulled(calls: Path) -> list[str]:
    return [line.split()[-1] for line in calls.read_text().splitlines() if line.startswith("docker pull")]


@pytest.mark.parametrize("command", ["deploy", "refresh"])
def test_the_image_is_built_anew_from_a_newer_base(command: str, tmp_path: Path, calls: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "deploy", tree / "deploy")
    for each in PARTS:
        (tree / each).mkdir()
        (tree / each / "file").touch()
    for each in ("pyproject.toml", "requirements.lock", "Caddyfile"):
        shutil.copy(ROOT / each, tree)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C", str(tree)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "All"]):
        subprocess.run([*git, *words], check=True, timeout=20)
    done = subprocess.run(
        ["bash", str(tree / "deploy/deploy.sh"), command, "root@box"],
        env={**os.environ, "BUILD": "docker"}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    commands = calls.read_text().splitlines()
    (built,) = [line for line in commands if line.startswith("docker build")]
    assert ("--pull --no-cache" in built) == (command == "refresh")
    (last,) = [line for line in commands if line.startswith("ssh") and f"host.sh {command} " in line]
    assert commands.index(built) < commands.index(last)


def test_a_host_takes_newer_servers_and_says_which(tmp_path: Path, calls: Path) -> None:
    done = there(tmp_path / "host")
    names = ["docker.io/library/caddy:2.11", "docker.io/pgvector/pgvector:pg17", "docker.io/library/redis@sha256:abc"]
    assert pulled(calls) == names
    assert "postgres: docker.io/pgvector/pgvector:pg17@sha256:new" in done.stdout
    assert calls.read_text().splitlines()[-1] == "docker load -q -i image.tar", "a deployment follows"


def test_of_managed_servers_only_the_proxy_is_ours(tmp_path: Path, calls: Path) -> None:
    there(tmp_path / "host", "SERVERS=elsewhere")
    assert pulled(calls) == ["docker.io/library/caddy:2.11"]


def test_without_a_registry_nothing_is_touched(tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULLS", "1")
    done = there(tmp_path / "host")
    assert done.returncode == 1
    assert "There is no docker.io/pgvector/pgvector:pg17 to be had; nothing was changed." in done.stdout + done.stderr
    assert "docker load" not in calls.read_text()
