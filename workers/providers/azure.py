"""Azure OpenAI; a `model` is the name of a deployment.

Without OPENAI_API_VERSION by the v1 interface, which every resource has; with it by the one with dated versions.
"""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

from workers.models import openai
from workers.models.provider import SIMULATED_KEY, Client

KEYS = ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT")
OPTIONS = ("OPENAI_API_VERSION",)
SIMULATED_VERSION = "2024-10-21"


def connect(values: Mapping[str, str], simulator_url: str | None) -> AbstractAsyncContextManager[Client]:
    if simulator_url:
        return openai.connect_azure(SIMULATED_KEY, simulator_url, SIMULATED_VERSION, proxies=False)
    key, endpoint = values["AZURE_OPENAI_API_KEY"], values["AZURE_OPENAI_ENDPOINT"].rstrip("/")
    if version := values.get("OPENAI_API_VERSION"):
        return openai.connect_azure(key, endpoint, version)
    return openai.connect(key, f"{endpoint}/openai/v1", name="azure")
