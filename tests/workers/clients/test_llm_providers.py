"""Which providers there are: those with a key, servers of one's own, files of the user's."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

import workers.providers
from prompts import Prompts, Target
from service.errors import SettingsError, WiringError
from service.settings import Settings
from tests.workers.clients.asking import (
    Ledger,
    Sorted,
    always,
    ask,
    opened,
    provider,
    said,
)
from workers.clients.llm import open_llm
from workers.providers import discover


@pytest.mark.parametrize(
    ("name", "given", "path", "header"),
    [
        ("openai", {"openai_base_url": "{}/v1"}, "/v1/chat/completions", "authorization"),
        ("anthropic", {"anthropic_base_url": "{}"}, "/v1/messages", "authorization"),
        ("azure", {"azure_openai_endpoint": "{}/"}, "/openai/v1/chat/completions", "authorization"),
        (
            "azure",
            {"azure_openai_endpoint": "{}/", "openai_api_version": "2024-10-21"},
            "/openai/deployments/gpt-6-luna/chat/completions?api-version=2024-10-21",
            "api-key",
        ),
        ("local", {"local_base_url": "{}/v1"}, "/v1/chat/completions", "authorization"),
    ],
)
async def test_keys_choose_the_provider_and_are_sent(
    prompts: Prompts, ledger: Ledger, name: str, given: dict[str, str], path: str, header: str
) -> None:
    seen: list[Request] = []

    async def handle(request: Request) -> Response:
        seen.append(request)
        return Response(said("hello"), media_type="application/json")

    alone = Prompts(prompts.versions, {**prompts.models, "both": prompts.models[name]})
    key = {"azure": "azure_openai_api_key"}.get(name, f"{name}_api_key")
    async with provider(handle) as url:
        settings = replace(Settings(), **{key: "k-123"}, **{each: given[each].format(url) for each in given})
        assert settings.has_provider_key
        async with open_llm(settings, alone, None, discover(workers.providers)) as llm:
            assert await ask(llm, ledger, labels={"event_id": "e"}) == "hello"
    assert [(call.provider, call.simulated) for call in ledger.calls] == [(name, False)]
    assert str(seen[0].url) == url + path
    assert "k-123" in seen[0].headers[header]
    assert not [each for each in seen[0].headers if each.startswith("x-callboard")], "labels are the simulator's only"


async def test_a_server_of_ones_own_needs_no_key_and_may_want_its_own_json(prompts: Prompts, ledger: Ledger) -> None:
    asked: list[dict[str, Any]] = []

    async def handle(request: Request) -> Response:
        asked.append(await request.json())
        return Response(said('{"intent": "x", "urgency": "high"}'), media_type="application/json")

    alone = Prompts(prompts.versions, {"both": prompts.models["local"]})
    async with provider(handle) as url:
        settings = replace(Settings(), local_base_url=f"{url}/v1")
        for json_ in ("json_schema", "json_object"):
            told = replace(settings, local_json=json_)
            async with open_llm(told, alone, None, discover(workers.providers)) as llm:
                assert await ask(llm, ledger, returns=Sorted) == Sorted("x", "high")
    wants = [each["response_format"] for each in asked]
    assert [each["type"] for each in wants] == ["json_schema", "json_object"]
    assert wants[0]["json_schema"]["schema"] == wants[1]["schema"]


OWN = '''"""Ours."""
from workers.clients import openai

DIALECT = openai.Dialect(max_tokens="max_tokens")


def connect(settings, simulator_url):
    return openai.connect("own", "{url}/v1", name="ours", proxies=False, dialect=DIALECT)
'''


async def test_a_provider_is_one_file(
    prompts: Prompts, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with provider(always(said("hello"))) as url:
        folder = tmp_path / "own_providers"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "ours.py").write_text(OWN.format(url=url))
        monkeypatch.syspath_prepend(tmp_path)
        found = discover(importlib.import_module("own_providers"))
        asked = Prompts(prompts.versions, {"both": (Target("ours", "m"),)})
        async with open_llm(Settings(), asked, None, found) as llm:
            assert await ask(llm, ledger) == "hello"
    assert [(call.provider, call.model, call.outcome) for call in ledger.calls] == [("ours", "m", "ok")]


@pytest.mark.parametrize(
    ("alias", "says"),
    [
        ("both", "set OPENAI_API_KEY or ANTHROPIC_API_KEY, give"),
        ("azure", "set AZURE_OPENAI_API_KEY and AZURE_OPENAI_ENDPOINT, give"),
        ("local", "set LOCAL_BASE_URL, give"),
    ],
)
async def test_no_key_at_all_stops_the_boot(prompts: Prompts, alias: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        async with opened(Prompts(prompts.versions, {**prompts.models, "both": prompts.models[alias]}), None):
            pass


async def test_an_alias_without_a_provider_file_stops_the_boot(prompts: Prompts, simulator: str) -> None:
    strange = Prompts(prompts.versions, {**prompts.models, "local": (Target("ollama", "qwen"),)})
    with pytest.raises(WiringError, match=r"workers/providers/ollama\.py"):
        async with opened(strange, simulator):
            pass
