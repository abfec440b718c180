"""A simulator that does not let anyone wait."""

from collections.abc import AsyncIterator

import httpx
import pytest

from workers.simulator import running_simulator
from workers.simulator.behaviour import Behaviour


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with running_simulator(behaviour=Behaviour(latency_ms=0)) as address:
        yield address


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=10, verify=False) as client:
        yield client
