"""Azure OpenAI; a `model` is the name of a deployment.

Without OPENAI_API_VERSION by the v1 interface, which every resource has; with it by the one with dated versions.
"""

from contextlib import AbstractAsyncContextManager

from service.settings import Settings
from workers.clients import openai
from workers.clients.provider import SIMULATED_KEY, Client

SIMULATED_VERSION = "2024-10-21"


def connect(settings: Settings, simulator_url: str | None) -> AbstractAsyncContextManager[Client] | None:
    if simulator_url:
        return openai.connect_azure(SIMULATED_KEY, simulator_url, SIMULATED_VERSION, proxies=False)
    if not settings.has("azure"):
        return None
    key, endpoint = settings.azure_openai_api_key, settings.azure_openai_endpoint.rstrip("/")
    if settings.openai_api_version:
        return openai.connect_azure(key, endpoint, settings.openai_api_version)
    return openai.connect(key, f"{endpoint}/openai/v1", name="azure")
