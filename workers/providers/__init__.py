"""The LLM providers: each file here is one, under its own name, and holds a `connect(settings, simulator_url)`."""

from types import ModuleType

from schemas.catalog import modules
from service.errors import WiringError
from workers.clients.provider import Connect


def discover(package: ModuleType) -> dict[str, Connect]:
    """Every provider in the modules of `package`, by the module's name."""
    return {module.__name__.rpartition(".")[2]: _connect(module) for module in modules(package)}


def _connect(module: ModuleType) -> Connect:
    connect: Connect | None = getattr(module, "connect", None)
    if connect is None:
        raise WiringError(f"{module.__name__} has no function connect(settings, simulator_url): see its neighbours.")
    return connect
