"""A prompt as a value, and the models it may be asked at."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta, Struct

Fill = Callable[[Mapping[str, object]], str]
"""Gives a part of a prompt with its variables filled in."""

DIGITS_MAX: Final = 9  # Python converts at most 4,300 digits, and raises for more


class PromptError(Exception):
    """A prompt, or what it was given, does not fit: names the prompt, the file and the variable."""


class Price(Struct, frozen=True, forbid_unknown_fields=True):
    """US dollars for a million tokens."""

    input: Annotated[float, Meta(ge=0)]
    output: Annotated[float, Meta(ge=0)]


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """What a provider allows of a model, to all workers together; None: no limit."""

    requests_per_min: Annotated[int, Meta(ge=1)] | None = None
    tokens_per_min: Annotated[int, Meta(ge=1)] | None = None
    concurrency: Annotated[int, Meta(ge=1)] | None = None


class Target(Struct, frozen=True, forbid_unknown_fields=True):
    """One link of an alias's chain; `usd_per_million` goes before the price list."""

    provider: str
    model: str
    usd_per_million: Price | None = None
    limits: Limits | None = None


class Head(Struct, frozen=True, forbid_unknown_fields=True):
    model: str
    max_tokens: Annotated[int, Meta(ge=1)]
    variables: tuple[str, ...]
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None


class Prompt(Struct, frozen=True):
    """One version of one prompt; `hash` is the sha256 of the file, whose whole is `text`."""

    name: str
    version: int
    hash: str
    text: str
    file: Path
    head: Head
    system: Fill | None
    user: Fill

    @property
    def model(self) -> str:
        return self.head.model

    @property
    def max_tokens(self) -> int:
        return self.head.max_tokens

    @property
    def variables(self) -> tuple[str, ...]:
        return self.head.variables


class Rendered(Struct, frozen=True):
    system: str | None
    user: str


class Prompts(Struct, frozen=True):
    """All prompts by name and version, and the aliases they are asked under."""

    versions: Mapping[str, Mapping[int, Prompt]]
    models: Mapping[str, tuple[Target, ...]]

    def get(self, name: str) -> Prompt:
        """`tickets/classify` is the newest version, `tickets/classify@1` that one.

        Raises PromptError where there is none.
        """
        plain, _, wanted = name.partition("@")
        versions = self.versions.get(plain)
        if versions is None:
            raise PromptError(f'No prompt "{plain}" (there are: {", ".join(self.versions) or "none"}).')
        if not wanted:
            return versions[max(versions)]
        if len(wanted) > DIGITS_MAX or not wanted.isdecimal() or int(wanted) not in versions:
            wanted = wanted if len(wanted) <= DIGITS_MAX else f"{wanted[:DIGITS_MAX]}…"
            raise PromptError(f'Prompt "{plain}" has no version {wanted} (it has: {", ".join(map(str, versions))}).')
        return versions[int(wanted)]

    def chain(self, alias: str) -> tuple[Target, ...]:
        if alias not in self.models:
            raise PromptError(f'No model alias "{alias}" (models.toml has: {", ".join(self.models)}).')
        return self.models[alias]
