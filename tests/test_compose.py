"""Of deploy/compose.yaml what can be told without a machine: that a container gets all keys that there are."""

import re
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest
import yaml

from service.settings import PROVIDERS, variable
from tests.processes import ROOT
from tests.tls import certified

NEEDED: Final = {name for names in PROVIDERS.values() for name in names} | {"local_api_key", "page_url"}


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_what_a_provider_needs_is_a_file(name: str) -> None:
    compose = (ROOT / "deploy/compose.yaml").read_text(encoding="utf-8")
    assert f"{variable(name)}_FILE: /run/secrets/{name}" in compose
    assert f"{name}: {{ file: ./secrets/{name} }}" in compose
    assert len(re.findall(rf"^ +- {name}$", compose, re.MULTILINE)) == 2, "for web and worker, and for tool"
    assert name in re.split(r"\W+", (ROOT / "deploy/host.sh").read_text(encoding="utf-8").partition("say()")[0])


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
    before = {path.name: path.read_text() for path in secrets.iterdir()}
    subprocess.run([*host, "prepare"], check=True, capture_output=True, timeout=20)
    assert {path.name: path.read_text() for path in secrets.iterdir()} == before
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
    for name, given in (("postgres_ca", made.replace("\n", "\r\n")), ("openai_api_key", "sk-1\r\n")):
        (tmp_path / "secrets" / name).touch()
        command = ["bash", str(tmp_path / "host.sh"), "secret", name]
        subprocess.run(command, input=given.encode(), check=True, capture_output=True, timeout=20)
    ssl.create_default_context(cafile=str(tmp_path / "secrets" / "postgres_ca"))
    assert (tmp_path / "secrets" / "postgres_ca").read_text() == made
    assert (tmp_path / "secrets" / "openai_api_key").read_bytes() == b"sk-1"
