"""What each question needs."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from prompts import Prompts, load
from tests.workers.models.asking import BODY, HEAD, MODELS, PAIR, PROVIDERS, Ledger
from workers.simulator import running_simulator
from workers.simulator.behaviour import Behaviour


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def prompts(tmp_path: Path) -> Prompts:
    chains = {"both": PAIR, **{provider: (provider,) for provider in PROVIDERS}}
    price = ", usd_per_million = { input = 1, output = 1 }"
    links = {
        alias: [
            f'{{ provider = "{each}", model = "{MODELS[each]}"{price if each == "local" else ""} }}'
            for each in chains[alias]
        ]
        for alias in chains
    }
    (tmp_path / "models.toml").write_text("".join(f"{alias} = [{', '.join(links[alias])}]\n" for alias in links))
    (tmp_path / "sort").mkdir()
    (tmp_path / "sort" / "v3.md").write_text(HEAD + BODY)
    return load(tmp_path)


@pytest.fixture
async def simulator() -> AsyncIterator[str]:
    async with running_simulator(behaviour=Behaviour(latency_ms=1)) as url:
        yield url
