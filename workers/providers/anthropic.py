"""Anthropic."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

from workers.models import anthropic
from workers.models.provider import SIMULATED_KEY, Client

KEYS = ("ANTHROPIC_API_KEY",)
OPTIONS = ("ANTHROPIC_BASE_URL",)


def connect(values: Mapping[str, str], simulator_url: str | None) -> AbstractAsyncContextManager[Client]:
    if simulator_url:
        return anthropic.connect(SIMULATED_KEY, simulator_url, proxies=False)
    return anthropic.connect(values["ANTHROPIC_API_KEY"], values.get("ANTHROPIC_BASE_URL"))
