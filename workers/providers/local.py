"""A server of your own that speaks OpenAI's protocol, at LOCAL_BASE_URL: Ollama, vLLM, llama.cpp."""

from contextlib import AbstractAsyncContextManager

from service.settings import Settings
from workers.clients import openai
from workers.clients.provider import SIMULATED_KEY, Client


def connect(settings: Settings, simulator_url: str | None) -> AbstractAsyncContextManager[Client] | None:
    dialect = openai.Dialect(max_tokens="max_tokens", json=settings.local_json)
    if simulator_url:
        return openai.connect(SIMULATED_KEY, f"{simulator_url}/v1", name="local", proxies=False, dialect=dialect)
    if not settings.has("local"):
        return None
    # The SDK wants some key; a server that has none does not look at it.
    return openai.connect(settings.local_api_key or "none", settings.local_base_url, name="local", dialect=dialect)
