"""The LLM providers: each file here is one, under its own name.

`KEYS` are the variables that it can't be asked without, `OPTIONS` others that it may be told; `connect(values,
simulator_url)` opens its client.
"""

from types import ModuleType

from schemas.catalog import modules
from service.errors import WiringError
from workers.clients.provider import Provider


def discover(package: ModuleType) -> dict[str, Provider]:
    """Every provider in the modules of `package`, by the module's name."""
    return {module.__name__.rpartition(".")[2]: _provider(module) for module in modules(package)}


def _provider(module: ModuleType) -> Provider:
    if not hasattr(module, "connect"):
        raise WiringError(f"{module.__name__} has no function connect(values, simulator_url): see its neighbours.")
    return Provider(module.connect, getattr(module, "KEYS", ()))
