"""Mistral, by the interface it has for OpenAI's protocol."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

from workers.models import openai
from workers.models.provider import SIMULATED_KEY, Client

KEYS = ("MISTRAL_API_KEY",)
URL = "https://api.mistral.ai/v1"
DIALECT = openai.Dialect(max_tokens="max_tokens", usage_unasked=True)


def connect(values: Mapping[str, str], simulator_url: str | None) -> AbstractAsyncContextManager[Client]:
    if simulator_url:
        return openai.connect(SIMULATED_KEY, f"{simulator_url}/v1", name="mistral", proxies=False, dialect=DIALECT)
    return openai.connect(values["MISTRAL_API_KEY"], URL, name="mistral", dialect=DIALECT)
