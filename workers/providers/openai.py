"""OpenAI, or what speaks its protocol at OPENAI_BASE_URL."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

from workers.models import openai
from workers.models.provider import SIMULATED_KEY, Client

KEYS = ("OPENAI_API_KEY",)
OPTIONS = ("OPENAI_BASE_URL",)


def connect(values: Mapping[str, str], simulator_url: str | None) -> AbstractAsyncContextManager[Client]:
    if simulator_url:
        return openai.connect(SIMULATED_KEY, f"{simulator_url}/v1", proxies=False)
    return openai.connect(values["OPENAI_API_KEY"], values.get("OPENAI_BASE_URL"))
