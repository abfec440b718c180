"""The LLM providers: each file here is one, under its own name.

`KEYS` are the variables that it can't be asked without, `OPTIONS` others that it may be told; `connect(values,
simulator_url)` opens its client.
"""

from inspect import signature
from types import ModuleType

from schemas.catalog import modules
from service.core.errors import WiringError
from workers.models.provider import Provider


def discover(package: ModuleType) -> dict[str, Provider]:
    """Every provider in the modules of `package`, by the module's name."""
    return {module.__name__.rpartition(".")[2]: _provider(module) for module in modules(package)}


def _provider(module: ModuleType) -> Provider:
    if not hasattr(module, "connect"):
        raise WiringError(f"{module.__name__} has no function connect(values, simulator_url): see its neighbours.")
    if next(iter(signature(module.connect).parameters), "") == "settings":
        raise WiringError(
            f"{module.__name__}: connect gets no settings any more, but the values of the file's KEYS and OPTIONS, by "
            "name. Name its variables there, and write connect(values, simulator_url)."
        )
    return Provider(module.connect, getattr(module, "KEYS", ()))
