"""Which providers there are: those with a key, servers of one's own, files of the user's."""

import importlib
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

import workers.providers
from prompts import Prompts, Target
from service.core.errors import CallboardError, Outage, SettingsError, WiringError
from service.core.settings import Settings, load
from tests.models import with_keys
from tests.workers.models.asking import Ledger, Sorted, always, ask, opened, provider, said, stream
from tests.workers.models.strict_servers import strict_provider
from workers.models.client import open_llm
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
        settings = with_keys(Settings(), **{key: "k-123"}, **{each: given[each].format(url) for each in given})
        assert settings.has_provider_key
        async with open_llm(settings, alone, None, discover(workers.providers)) as llm:
            assert await ask(llm, ledger, labels={"event_id": "e"}) == "hello"
    assert [(call.provider, call.simulated) for call in ledger.calls] == [(name, False)]
    assert str(seen[0].url) == url + path
    assert "k-123" in seen[0].headers[header]
    assert not [each for each in seen[0].headers if each.startswith("x-callboard")], "labels are the simulator's only"


@pytest.mark.parametrize("key", ["sk-1\n", "sk-1\r\nx: y", "sk-\x00", "sk-\u2028", "sk-é"])
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("name", ["openai", "anthropic"])
async def test_a_call_that_could_not_be_sent_costs_nothing(
    prompts: Prompts, ledger: Ledger, name: str, key: str, streams: bool
) -> None:
    """Of a key from a file of the user's own, say: those of the settings are looked at when they are read."""
    async with strict_provider() as (url, server):
        settings = with_keys(Settings(), openai_api_key=key, openai_base_url=f"{url}/v1")
        settings = with_keys(settings, anthropic_api_key=key, anthropic_base_url=url)
        alone = Prompts(prompts.versions, {"both": prompts.models[name]})
        async with open_llm(settings, alone, None, discover(workers.providers)) as llm:
            put = stream if streams else ask
            if name == "anthropic" and not key.isascii():  # its SDK sends such a key as it is
                with suppress(CallboardError):
                    await put(llm, ledger)
                return
            with pytest.raises(Outage, match=f"{name} can't be asked") as error:
                await put(llm, ledger)
    assert server.heads == []
    assert (ledger.outcomes, ledger.calls[0].cost_usd) == (["setup"], 0.0)
    assert ledger.opened[0].cost_usd > 0
    assert "sk-" not in str(error.value)


async def test_an_address_that_no_request_can_be_sent_to_costs_nothing(prompts: Prompts, ledger: Ledger) -> None:
    alone = Prompts(prompts.versions, {"both": prompts.models["openai"]})
    settings = with_keys(Settings(), openai_api_key="sk-1", openai_base_url="ftp://127.0.0.1/v1")
    async with open_llm(settings, alone, None, discover(workers.providers)) as llm:
        with pytest.raises(Outage):
            await ask(llm, ledger)
    assert ledger.calls[0].cost_usd == 0.0


@pytest.mark.parametrize("name", ["openai", "anthropic"])
async def test_a_key_with_a_newline_at_its_end_is_sent_without_it(prompts: Prompts, ledger: Ledger, name: str) -> None:
    async with strict_provider() as (url, server):
        address = f"{url}/v1" if name == "openai" else url
        settings = load({f"{name.upper()}_API_KEY": "sk-1\r\n", f"{name.upper()}_BASE_URL": f"{address}\n"})
        alone = Prompts(prompts.versions, {"both": prompts.models[name]})
        async with open_llm(settings, alone, None, discover(workers.providers)) as llm:
            assert await ask(llm, ledger) == "Thank you for your message."
    assert re.search(r"^(authorization: bearer |x-api-key: )sk-1\r$", server.heads[0].lower(), re.MULTILINE)


async def test_a_server_of_ones_own_needs_no_key_and_may_want_its_own_json(prompts: Prompts, ledger: Ledger) -> None:
    asked: list[dict[str, Any]] = []

    async def handle(request: Request) -> Response:
        asked.append(await request.json())
        return Response(said('{"intent": "x", "urgency": "high"}'), media_type="application/json")

    alone = Prompts(prompts.versions, {"both": prompts.models["local"]})
    async with provider(handle) as url:
        settings = with_keys(Settings(), local_base_url=f"{url}/v1")
        for json_ in ("json_schema", "json_object"):
            told = with_keys(settings, local_json=json_)
            async with open_llm(told, alone, None, discover(workers.providers)) as llm:
                assert await ask(llm, ledger, returns=Sorted) == Sorted("x", "high")
    wants = [each["response_format"] for each in asked]
    assert [each["type"] for each in wants] == ["json_schema", "json_object"]
    assert wants[0]["json_schema"]["schema"] == wants[1]["schema"]


OWN = '''"""Ours."""
from workers.models import openai

DIALECT = openai.Dialect(max_tokens="max_tokens")


KEYS = ("OURS_API_KEY",)


def connect(values, simulator_url):
    return openai.connect(values["OURS_API_KEY"], "{url}/v1", name="ours", proxies=False, dialect=DIALECT)
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
        catalog = discover(importlib.import_module("own_providers"))
        asked = Prompts(prompts.versions, {"both": (Target("ours", "m"),)})
        with pytest.raises(SettingsError, match='No provider of the model alias "both" can be asked'):
            await open_llm(Settings(), asked, None, catalog).__aenter__()
        async with open_llm(with_keys(Settings(), ours_api_key="own"), asked, None, catalog) as llm:
            assert await ask(llm, ledger) == "hello"
    assert [(call.provider, call.model, call.outcome) for call in ledger.calls] == [("ours", "m", "ok")]


def test_a_provider_of_the_release_before_is_told_what_it_gets_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "old_providers"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "ours.py").write_text("def connect(settings, simulator_url):\n    return None\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WiringError, match=r"old_providers\.ours: connect gets no settings any more.* KEYS and OPTIONS"):
        discover(importlib.import_module("old_providers"))


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
