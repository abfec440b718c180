"""Gemini, by the interface it has for OpenAI's protocol."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

from workers.models import openai
from workers.models.provider import SIMULATED_KEY, Client

KEYS = ("GEMINI_API_KEY",)
URL = "https://generativelanguage.googleapis.com/v1beta/openai"
DIALECT = openai.Dialect(max_tokens="max_tokens")


def connect(values: Mapping[str, str], simulator_url: str | None) -> AbstractAsyncContextManager[Client]:
    if simulator_url:
        return openai.connect(SIMULATED_KEY, f"{simulator_url}/v1", name="gemini", proxies=False, dialect=DIALECT)
    return openai.connect(values["GEMINI_API_KEY"], URL, name="gemini", dialect=DIALECT)
