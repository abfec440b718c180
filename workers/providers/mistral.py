"""Mistral, by the interface it has for OpenAI's protocol."""

from contextlib import AbstractAsyncContextManager

from service.settings import Settings
from workers.clients import openai
from workers.clients.provider import SIMULATED_KEY, Client

URL = "https://api.mistral.ai/v1"
DIALECT = openai.Dialect(max_tokens="max_tokens", usage_unasked=True)


def connect(settings: Settings, simulator_url: str | None) -> AbstractAsyncContextManager[Client] | None:
    if simulator_url:
        return openai.connect(SIMULATED_KEY, f"{simulator_url}/v1", name="mistral", proxies=False, dialect=DIALECT)
    if not settings.has("mistral"):
        return None
    return openai.connect(settings.mistral_api_key, URL, name="mistral", dialect=DIALECT)
