"""Of deploy/compose.yaml what can be told without a machine: that a container gets all keys that there are."""

import os
import re
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest
import yaml

from tests.processes import ROOT
from tests.tls import certified

SSH: Final = """#!/bin/sh
case $2 in *id*) exit 0 ;; esac # who is asked first whether it is root
echo "$2"
"""


def test_what_providers_and_own_settings_name_is_a_file_in_a_folder() -> None:
    """Whatever it is called: of who runs user code, and of nobody else."""
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text(encoding="utf-8"))
    mounts = {name: service.get("volumes", ()) for name, service in compose["services"].items()}
    assert {name for name, volumes in mounts.items() if "./secrets/app:/run/app:ro" in volumes} == {"worker", "tool"}
    assert "ENV CALLBOARD_SECRETS_DIR=/run/app\n" in (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
    assert "CALLBOARD_SECRETS_DIR" not in str(compose), (
        "the release before would refuse a setting that it does not know"
    )


# What the first release read: a rollback may start it again.
OF_0_1: Final = (
    *("anthropic_api_key", "openai_api_key", "azure_openai_api_key", "azure_openai_endpoint", "gemini_api_key"),
    *("mistral_api_key", "local_base_url", "local_api_key", "page_url"),
)
KNOWN: Final = ("anthropic_api_key", "local_json", "page_url", "redis_ca", "database_url")
UNKNOWN: Final = ("antropic_api_key", "page", "url", "../x", "")


@pytest.mark.parametrize(("name", "known"), [*((name, True) for name in KNOWN), *((name, False) for name in UNKNOWN)])
def test_make_secret_knows_the_names_that_files_give(tmp_path: Path, name: str, known: bool) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(SSH)
    ssh.chmod(0o755)
    command = ["bash", str(ROOT / "deploy/deploy.sh"), "secret", "box", name]
    done = subprocess.run(
        command, env={"PATH": os.environ["PATH"], "SSH": str(ssh)}, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode == 0) is known, done.stderr
    assert (f"host.sh secret {name}" in done.stdout) is known
    assert ("Nothing names the secret" in done.stderr) is not known


def test_on_a_host_of_the_release_before_keys_are_taken_into_the_folder(tmp_path: Path) -> None:
    shutil.copy(ROOT / "deploy/host.sh", tmp_path)
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for name in ("openai_api_key", "local_base_url", "azure_openai_endpoint", "page_url", "api_key", "redis_ca"):
        (secrets / name).write_text(name)
    host = ["bash", str(tmp_path / "host.sh")]
    subprocess.run([*host, "prepare"], check=True, capture_output=True, timeout=20)
    keys = ("openai_api_key", "local_base_url", "azure_openai_endpoint", "page_url")
    assert {path.name: path.read_text() for path in (secrets / "app").iterdir()} == {
        **dict.fromkeys(OF_0_1, ""),
        **{name: name for name in keys},
    }
    assert (secrets / "app").stat().st_mode & 0o777 == 0o755, "a program that is not root reads in it"
    (secrets / "app" / "page_url").unlink()
    subprocess.run([*host, "prepare"], check=True, capture_output=True, timeout=20)
    assert (secrets / "app" / "page_url").read_text() == "", "what was taken away is not copied again"


def test_a_rollback_to_the_first_release_finds_its_keys() -> None:
    """It knows no folder of secrets: each file was named, and had to be there."""
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text(encoding="utf-8"))
    for service in ("worker", "tool"):
        environ = compose["services"][service]["environment"]
        assert {f"{name.upper()}_FILE": f"/run/app/{name}" for name in OF_0_1}.items() <= environ.items(), service


@pytest.mark.parametrize("name", ["postgres_ca", "redis_ca"])
def test_a_vendors_authority_is_a_file_that_an_address_may_name(name: str) -> None:
    """In each container that reads the addresses, where deploy/managed-servers.md says it is."""
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text(encoding="utf-8"))
    assert compose["secrets"][name] == {"file": f"./secrets/{name}"}
    readers = [key for key, each in compose["services"].items() if "database_url" in each.get("secrets", ())]
    assert readers == ["web-blue", "web-green", "worker", "tool"]
    assert all(name in compose["services"][reader]["secrets"] for reader in readers)
    assert name in re.split(r"\W+", (ROOT / "deploy/host.sh").read_text(encoding="utf-8").partition("say()")[0])
    assert f"/run/secrets/{name}" in (ROOT / "deploy/managed-servers.md").read_text(encoding="utf-8")


def test_the_owner_of_the_database_is_the_tools_alone() -> None:
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text(encoding="utf-8"))
    assert [name for name, it in compose["services"].items() if "database_owner_url" in it.get("secrets", ())] == [
        "tool"
    ]
    reads = [name for name, it in compose["services"].items() if "DATABASE_OWNER_URL_FILE" in it.get("environment", ())]
    assert reads == ["tool"]


def test_a_fresh_host_has_an_owner_and_a_runner_and_an_address_of_others_none_of_ours(tmp_path: Path) -> None:
    shutil.copy(ROOT / "deploy/host.sh", tmp_path)
    host = ["bash", str(tmp_path / "host.sh")]
    subprocess.run([*host, "prepare"], check=True, capture_output=True, timeout=20)
    secrets = tmp_path / "secrets"
    owner, runner = (urlsplit((secrets / f"{name}_url").read_text()) for name in ("database_owner", "database"))
    assert (owner.username, owner.password) == ("callboard", (secrets / "postgres_password").read_text())
    assert runner.username == "callboard_runner"
    assert runner.password not in (None, owner.password)
    before = {path.name: path.read_text() for path in secrets.iterdir() if path.is_file()}
    subprocess.run([*host, "prepare"], check=True, capture_output=True, timeout=20)
    assert {path.name: path.read_text() for path in secrets.iterdir() if path.is_file()} == before
    managed = b"postgresql://u:p@db.example.org/callboard?sslmode=verify-full"
    for name in ("database_url", "database_owner_url", "database_url"):
        subprocess.run([*host, "secret", name], input=managed, check=True, capture_output=True, timeout=20)
        given = (secrets / "database_owner_url").read_bytes()
        assert given == (managed if name == "database_owner_url" or given else b"")
    assert given == managed


def test_a_certificate_keeps_its_lines_and_a_key_has_none(tmp_path: Path) -> None:
    shutil.copy(ROOT / "deploy/host.sh", tmp_path)
    (tmp_path / "secrets").mkdir()
    made = certified(tmp_path / "tls").authority.read_text()
    (tmp_path / "secrets" / "app").mkdir()
    for name, given in (("postgres_ca", made.replace("\n", "\r\n")), ("openai_api_key", "sk-1\r\n")):
        command = ["bash", str(tmp_path / "host.sh"), "secret", name]
        subprocess.run(command, input=given.encode(), check=True, capture_output=True, timeout=20)
    ssl.create_default_context(cafile=str(tmp_path / "secrets" / "postgres_ca"))
    assert (tmp_path / "secrets" / "postgres_ca").read_text() == made
    assert (tmp_path / "secrets" / "app" / "openai_api_key").read_bytes() == b"sk-1"
