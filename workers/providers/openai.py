"""OpenAI, or what speaks its protocol at OPENAI_BASE_URL."""

from contextlib import AbstractAsyncContextManager

from service.settings import Settings
from workers.clients import openai
from workers.clients.provider import SIMULATED_KEY, Client


def connect(settings: Settings, simulator_url: str | None) -> AbstractAsyncContextManager[Client] | None:
    if simulator_url:
        return openai.connect(SIMULATED_KEY, f"{simulator_url}/v1", proxies=False)
    if not settings.openai_api_key:
        return None
    return openai.connect(settings.openai_api_key, settings.openai_base_url or None)
