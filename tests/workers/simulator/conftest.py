"""A simulator that does not let anyone wait."""

from collections.abc import AsyncIterator

import httpx
import pytest

from workers.simulator import running_simulator


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with running_simulator(latency_s=0.0) as address:
        yield address


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=10) as client:
        yield client
