"""The API without a worker: what it accepts stays queued."""

from collections.abc import AsyncIterator

import httpx
import pytest

from service.settings import Settings
from tests.board import serving


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(settings) as url, httpx.AsyncClient(base_url=url, timeout=30, verify=False) as http:
        yield http
