"""What must hold of the chains in models.toml before a worker starts."""

from collections.abc import Container, Mapping, Sequence

from prompts import Prompts, Target
from service.core.declared import Variables, variables_of_providers
from service.core.errors import SettingsError, WiringError
from workers.models.call import Caller
from workers.models.provider import Provider


def check_chains(prompts: Prompts, providers: Mapping[str, Provider]) -> None:
    """Raises WiringError."""
    for alias, chain in prompts.models.items():
        for name in {target.provider for target in chain} - providers.keys():
            raise WiringError(f'models.toml: {alias} names the provider "{name}": write workers/providers/{name}.py.')


def check_keys(prompts: Prompts, with_key: Container[str]) -> None:
    """Raises SettingsError where a prompt's alias names no provider that has a key."""
    for alias in sorted({prompt.model for versions in prompts.versions.values() for prompt in versions.values()}):
        chain = prompts.chain(alias)
        if not any(target.provider in with_key for target in chain):
            raise SettingsError(no_key(alias, chain))


def no_key(alias: str, chain: Sequence[Target]) -> str:
    """What to do where no provider of the chain can be asked."""
    names = " or ".join(dict.fromkeys(_needs(target.provider) for target in chain))
    return (
        f'No provider of the model alias "{alias}" can be asked: set {names}, give the alias another one in '
        "prompts/models.toml, or set CALLBOARD_SIMULATE=on to try without."
    )


def _needs(provider: str) -> str:
    keys = variables_of_providers().get(provider, Variables()).keys
    return " and ".join(keys) or f"what workers/providers/{provider}.py asks for"


def check_embeds(alias: str, chain: Sequence[Target], caller: Caller) -> None:
    """Raises WiringError where one of the chain has no embeddings, or none that can be compared with the others'."""
    for target in chain:
        if not caller.embeds(target):
            raise WiringError(f"models.toml: {alias} names {target.provider}, which has no embeddings.")
    if len(models := dict.fromkeys(target.model for target in chain)) > 1:
        raise WiringError(
            f"models.toml: {alias} names {' and '.join(models)}, whose vectors can't be compared: "
            "all of its providers need the same model (of Azure: a deployment of that name)."
        )
