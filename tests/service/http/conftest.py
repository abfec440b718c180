"""The API without a worker: what it accepts stays queued."""

from collections.abc import AsyncIterator

import httpx
import pytest

from service.core.settings import Settings
from tests.answers import hold
from tests.board import serving
from tests.keys import AT_HOME


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        serving(settings) as url,
        httpx.AsyncClient(
            headers=AT_HOME, base_url=url, timeout=30, verify=False, event_hooks={"response": [hold]}
        ) as http,
    ):
        yield http
