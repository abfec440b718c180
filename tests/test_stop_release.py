"""`make deploy` of a release whose migration begins with `-- stop:`, and the way back. Docker is a stub here."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.processes import ROOT

MIGRATION: Final = "0023_field_words.sql"
# v1 is the release before that migration. `$STATE` is a folder: what is in it has happened.
DOCKER: Final = rf"""#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in
    *"cat VERSION") echo "${{5##*:}}" ;;
    *"grep -l"*) [ "${{5##*:}}" = v1 ] || [ -z "${{NEEDS- stop}}" ] || echo {MIGRATION} ;;
    *"migrations && ls") echo 0001_events.sql; [ "${{5##*:}}" = v1 ] || echo {MIGRATION} ;;
    *"migrate --dry-run") cat > /dev/null # as docker compose run does, with whatever its caller's stdin is
        [ -e "$STATE/migrated" ] || echo "{MIGRATION}${{NEEDS- stop}}" ;;
    *"callboard migrate") [ -n "$MIGRATION_FAILS" ] && exit 1; touch "$STATE/migrated" ;;
    *"pg_restore"*) cat > /dev/null; rm -f "$STATE/migrated" ;;
    *"ps -aq web-"* | *"ps -q web-"*) echo "${{*##* }}" ;;
    *"--scale worker="*) touch "$STATE/new-worker" ;;
    "rm old-worker") touch "$STATE/no-old-worker" ;;
    *"ps -aq worker")
        [ -e "$STATE/no-old-worker" ] || echo old-worker
        [ ! -e "$STATE/new-worker" ] || echo new-worker ;;
    "inspect callboard-postgres-next") exit 1 ;;
    *IPAddress*) echo "${{*##* }}" ;;
    *RestartCount*) echo 3 exited ;;
esac
"""
CURL: Final = r"""#!/bin/sh
case "$*" in
    */readyz) [ -z "$NEVER_READY" ] || case "$*" in *web-green*) exit 22 ;; esac ;;
    */healthz) echo '{"version":"v2"}' ;;
esac
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host on which v1 serves on web-blue, with one worker."""
    programs = {"docker": DOCKER, "curl": CURL, "sleep": "#!/bin/sh\n"}
    for folder in ("bin", "state", "host/next"):
        (tmp_path / folder).mkdir(parents=True)
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("STATE", str(tmp_path / "state"))
    host = tmp_path / "host"
    shutil.copy(ROOT / "deploy/host.sh", host)
    (host / "settings").touch()
    (host / "next" / "Caddyfile").touch()
    (host / "secrets").mkdir()
    for name in ("api_key", "database_owner_url", "postgres_password", "redis_password"):
        (host / "secrets" / name).write_text("given")
    (host / "releases").write_text("2026-01-01T00:00:00Z v1 blue\n")
    return host


def run(host: Path, *words: str) -> tuple[int, str, list[str]]:
    """Its status, what it says, and what Docker was asked."""
    command = ["bash", str(host / "host.sh"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    output = (host / "log").read_text() if (host / "log").exists() else ""
    calls = host.parent / "calls"
    return done.returncode, output, calls.read_text().splitlines() if calls.exists() else []


def at(calls: list[str], end: str) -> int:
    """Which of the calls is the first that ends so."""
    return next(n for n, call in enumerate(calls) if call.endswith(end))


def serves(host: Path) -> str:
    return (host / "releases").read_text().split()[-2]


def test_all_that_runs_is_stopped_before_the_migration(host: Path) -> None:
    status, output, calls = run(host, "deploy", "v2")
    assert status == 0, output
    assert serves(host) == "v2"
    order = ["stop web-blue worker", "-Fc callboard", "callboard migrate", "start web-green", "rm old-worker"]
    places = [at(calls, end) for end in order]
    assert places == sorted(places)
    assert at(calls, "--scale worker=1 worker") > places[-1], "the old worker is not started again beside the new one"
    assert f"All stop: {MIGRATION} changes what v1 reads and writes." in output
    assert "Nothing was taken in and nothing ran for " in output


def test_what_was_cut_off_behind_the_migration_goes_on(host: Path) -> None:
    """Nothing is pending, and the old release, which the schema is no longer for, is not started beside the new one."""
    (host.parent / "state" / "migrated").touch()
    status, output, calls = run(host, "deploy", "v2")
    assert status == 0, output
    assert serves(host) == "v2"
    assert not [call for call in calls if call.endswith("callboard migrate")]
    assert at(calls, "stop web-blue worker") < at(calls, "rm old-worker") < at(calls, "--scale worker=1 worker")


def test_nothing_is_stopped_for_a_migration_that_needs_no_stop(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEEDS", "")
    status, output, calls = run(host, "deploy", "v2")
    assert status == 0, output
    assert not [call for call in calls if call.endswith("stop web-blue worker")]
    assert at(calls, "--scale worker=2 worker") > at(calls, "callboard migrate")
    assert "All stop" not in output


def test_a_rollback_across_it_is_refused_and_nothing_is_touched(host: Path) -> None:
    (host / "releases").write_text("2026-01-01T00:00:00Z v1 blue\n2026-01-02T00:00:00Z v2 green\n")
    status, output, calls = run(host, "rollback")
    assert status == 1
    assert f"v1 can't run on the schema that is there: {MIGRATION} changed what it reads and writes" in output
    assert not [call for call in calls if " compose " in f" {call}" or call.startswith(("stop", "rm", "start"))]
    assert serves(host) == "v2"


@pytest.mark.parametrize("fault", ["MIGRATION_FAILS", "NEVER_READY"])
def test_what_fails_brings_the_old_release_back(host: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fault, "1")
    status, output, calls = run(host, "deploy", "v2")
    assert status == 1
    restored = [call for call in calls if "pg_restore" in call]
    assert len(restored) == (fault == "NEVER_READY"), "a migration that failed has changed nothing"
    begun = at(calls, "start web-blue worker")
    assert begun > at(calls, "callboard migrate")
    assert not restored or begun > calls.index(restored[0])
    assert "Nothing was taken in for " in output
    assert "Aborted; v1 goes on serving." in output
    assert serves(host) == "v1"
