"""Of deploy/compose.yaml what can be told without a machine: that a container gets all keys that there are."""

import re
from typing import Final

import pytest

from service.settings import PROVIDERS, variable
from tests.processes import ROOT

NEEDED: Final = {name for names in PROVIDERS.values() for name in names} | {"local_api_key", "page_url"}


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_what_a_provider_needs_is_a_file(name: str) -> None:
    compose = (ROOT / "deploy/compose.yaml").read_text(encoding="utf-8")
    assert f"{variable(name)}_FILE: /run/secrets/{name}" in compose
    assert f"{name}: {{ file: ./secrets/{name} }}" in compose
    assert len(re.findall(rf"^ +- {name}$", compose, re.MULTILINE)) == 2, "for web and worker, and for tool"
    assert name in re.split(r"\W+", (ROOT / "deploy/host.sh").read_text(encoding="utf-8").partition("say()")[0])
