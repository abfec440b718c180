"""Gemini, by the interface it has for OpenAI's protocol."""

from contextlib import AbstractAsyncContextManager

from service.settings import Settings
from workers.clients import openai
from workers.clients.provider import SIMULATED_KEY, Client

URL = "https://generativelanguage.googleapis.com/v1beta/openai"
DIALECT = openai.Dialect(max_tokens="max_tokens")


def connect(settings: Settings, simulator_url: str | None) -> AbstractAsyncContextManager[Client] | None:
    if simulator_url:
        return openai.connect(SIMULATED_KEY, f"{simulator_url}/v1", name="gemini", proxies=False, dialect=DIALECT)
    if not settings.has("gemini"):
        return None
    return openai.connect(settings.gemini_api_key, URL, name="gemini", dialect=DIALECT)
