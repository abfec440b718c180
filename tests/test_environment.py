"""What a newcomer needs before anything runs: the lock, the Makefile, the script that makes .venv."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
TOOLS = ("awk", "cat", "cksum", "dirname", "flock", "mktemp", "rm", "uname")


def packages() -> dict[str, str]:
    """The entry of each package of the lock: from its `name==version` to the next."""
    entries = re.split(r"^(?=[a-z0-9])", LOCK, flags=re.MULTILINE)[1:]
    return {entry.partition("==")[0].strip(): entry for entry in entries}


def needed() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = project["dependency-groups"]
    lines = project["project"]["dependencies"] + groups["embedded"] + groups["dev"]
    return {re.split(r"[^A-Za-z0-9-]", line)[0].lower() for line in lines}


def test_every_package_of_the_lock_has_one_version_and_hashes() -> None:
    entries = packages()
    assert len(entries) > 50
    assert not [name for name, entry in entries.items() if "--hash=sha256:" not in entry]
    assert not re.search(r"^[a-z0-9-]+(?!.*==)[^#\n]*$", LOCK, flags=re.MULTILINE)


def test_the_lock_names_no_host() -> None:
    assert not re.search(r"://|^--|index", LOCK, flags=re.MULTILINE)


def test_the_lock_holds_what_the_project_asks_for() -> None:
    assert needed() <= packages().keys()


def test_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE)) - {"venv"}
    assert {"up", "test", "check", "demo", "bench", "deploy", "help"} <= targets
    shown = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert shown.returncode == 0
    assert {line.split()[1] for line in shown.stdout.splitlines()} == targets


def make_environment(root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [shutil.which("sh") or "/bin/sh", str(root / "deploy" / "venv.sh")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    (tmp_path / "deploy").mkdir()
    for name in ("requirements.lock", "deploy/venv.sh"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.skipif(not (ROOT / ".venv" / "stamp").exists(), reason="no .venv made by make")
def test_an_environment_that_is_up_to_date_is_left_alone() -> None:
    stamp = ROOT / ".venv" / "stamp"
    before = stamp.stat().st_mtime_ns
    made = make_environment(ROOT, PATH=os.environ["PATH"])
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    assert stamp.stat().st_mtime_ns == before


def test_the_environment_holds_the_locked_versions() -> None:
    """The interpreter that runs this is the one of .venv, and has what the lock says."""
    shown = subprocess.run(
        [
            sys.executable,
            "-c",
            "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()))",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    installed = {
        re.sub(r"[-_.]+", "-", word.partition("==")[0]).lower(): word.partition("==")[2]
        for word in shown.stdout.split()
    }
    for name in needed() & installed.keys():
        assert f"{name}=={installed[name]} " in packages()[name]


def test_a_python_that_does_not_fit_is_one_sentence(clone: Path) -> None:
    made = make_environment(clone, PATH=os.environ["PATH"], PYTHON="/bin/false")
    assert made.returncode == 1
    assert made.stderr == "PYTHON=/bin/false is no Python >= 3.11. Name another, or unset it.\n"
    assert not (clone / ".venv").exists()


def test_no_python_is_one_sentence(clone: Path) -> None:
    tools = clone / "tools"
    tools.mkdir()
    for tool in TOOLS:
        if found := shutil.which(tool):
            (tools / tool).symlink_to(found)
    made = make_environment(clone, PATH=str(tools))
    assert made.returncode == 1
    assert made.stderr.startswith("Callboard needs Python 3.11 or newer, and found none on PATH.")
    assert made.stderr.count("\n") == 1


def test_a_half_made_environment_is_noticed(clone: Path) -> None:
    """No uv and no way to a registry: it says so, and leaves nothing that a later run would take for whole."""
    (clone / ".venv" / "bin").mkdir(parents=True)
    nowhere = {
        "PIP_INDEX_URL": "http://127.0.0.1:9/",
        "PIP_RETRIES": "0",
        "PIP_CONFIG_FILE": os.devnull,
        "HOME": str(clone),
    }
    tools = f"{clone / 'no-uv'}:/usr/bin:/bin"
    made = make_environment(clone, PATH=tools, PYTHON=sys.executable, **nowhere)
    assert made.returncode == 1
    assert made.stderr.startswith("The last try at .venv did not finish: making it anew with Python 3.")
    assert made.stderr.endswith("then run make again.\n")
    assert not (clone / ".venv" / "stamp").exists()
