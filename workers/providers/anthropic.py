"""Anthropic."""

from contextlib import AbstractAsyncContextManager

from service.settings import Settings
from workers.clients import anthropic
from workers.clients.provider import SIMULATED_KEY, Client


def connect(settings: Settings, simulator_url: str | None) -> AbstractAsyncContextManager[Client] | None:
    if simulator_url:
        return anthropic.connect(SIMULATED_KEY, simulator_url, proxies=False)
    if not settings.anthropic_api_key:
        return None
    return anthropic.connect(settings.anthropic_api_key, settings.anthropic_base_url or None)
