"""A server of your own that speaks OpenAI's protocol, at LOCAL_BASE_URL: Ollama, vLLM, llama.cpp."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

from msgspec import ValidationError, convert

from service.core.errors import SettingsError
from workers.models import openai
from workers.models.provider import SIMULATED_KEY, Client

KEYS = ("LOCAL_BASE_URL",)
OPTIONS = ("LOCAL_API_KEY", "LOCAL_JSON")


def connect(values: Mapping[str, str], simulator_url: str | None) -> AbstractAsyncContextManager[Client]:
    form = {"max_tokens": "max_tokens", "json": values.get("LOCAL_JSON", "json_schema")}
    try:
        dialect = convert(form, openai.Dialect)
    except ValidationError as error:
        raise SettingsError(f"LOCAL_JSON={form['json']} does not fit: {error}.") from error
    if simulator_url:
        return openai.connect(SIMULATED_KEY, f"{simulator_url}/v1", name="local", proxies=False, dialect=dialect)
    # The SDK wants some key; a server that has none does not look at it.
    key = values.get("LOCAL_API_KEY") or "none"
    return openai.connect(key, values["LOCAL_BASE_URL"], name="local", dialect=dialect)
