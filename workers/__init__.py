"""The hands: what runs pipelines."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`arq workers.WorkerSettings`, without pulling the engine in for everyone who imports a node."""
    if name == "WorkerSettings":
        from workers.bootstrap import worker_settings

        return worker_settings()
    raise AttributeError(name)
