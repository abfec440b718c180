"""What models are told: the strict loader of `prompts/<name>/v<N>.md` and of `models.toml`.

+++
model = "fast"                # an alias of models.toml
max_tokens = 2000             # temperature = 0.2 may follow
variables = ["ticket"]        # exactly the names the body uses
+++
--- system ---
optional: who the model is
--- user ---
sandboxed Jinja2: {{ ticket.body }}
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec
from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from msgspec import Meta, Struct

Fill = Callable[[Mapping[str, object]], str]
HERE: Final = Path(__file__).parent
DIGITS_MAX: Final = 9  # Python converts at most 4,300 digits, and raises for more
HEAD: Final = re.compile(r"\A\+\+\+[ \t]*\n(.*?)^\+\+\+[ \t]*\n(.*)\Z", re.DOTALL | re.MULTILINE)
PART: Final = re.compile(r"^--- (\w+) ---[ \t]*\n", re.MULTILINE)
FILE: Final = re.compile(r"v([1-9]\d*)\.md")
NAME: Final = re.compile(r"[a-z][a-z0-9_]*(/[a-z][a-z0-9_]*)*")


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


def load(folder: Path = HERE) -> Prompts:
    """Read every prompt below `folder` and its models.toml.

    Raises PromptError with the file's name where anything in it does not fit.
    """
    models = _models(folder / "models.toml")
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    versions: dict[str, dict[int, Prompt]] = {}
    for file in sorted(folder.rglob("*.md")):
        prompt = _prompt(folder, file, environment)
        if prompt.model not in models:
            raise PromptError(f'{file}: model = "{prompt.model}" is no alias of models.toml ({", ".join(models)}).')
        versions.setdefault(prompt.name, {})[prompt.version] = prompt
    return Prompts(versions, models)


def render(prompt: Prompt, variables: Mapping[str, object]) -> Rendered:
    """Fill in the blanks.

    Raises PromptError where a declared variable is missing, another is given, or the body uses what a variable has not.
    """
    check_names(prompt, variables)
    try:
        return Rendered(prompt.system and prompt.system(variables), prompt.user(variables))
    except (TemplateError, TypeError) as error:
        raise PromptError(f"{_where(prompt)} can't be rendered: {error}.") from error


def check_names(prompt: Prompt, names: Collection[str]) -> None:
    """Raises PromptError where the names given are not those that the prompt declares."""
    missing = [name for name in prompt.variables if name not in names]
    if missing:
        raise PromptError(f"{_where(prompt)} wants {', '.join(missing)}: give it by that name.")
    unknown = [name for name in names if name not in prompt.variables]
    if unknown:
        raise PromptError(f"{_where(prompt)} declares no {', '.join(unknown)} (it has: {', '.join(prompt.variables)}).")


def _where(prompt: Prompt) -> str:
    """Its file by the path below the project's folder: callers of the API see this, and not where that folder is."""
    is_ours = prompt.file.is_relative_to(HERE.parent)
    return f'Prompt "{prompt.name}" ({prompt.file.relative_to(HERE.parent) if is_ours else prompt.file.name})'


def _models(file: Path) -> dict[str, tuple[Target, ...]]:
    try:
        models = msgspec.toml.decode(file.read_bytes(), type=dict[str, tuple[Target, ...]])
    except OSError as error:
        raise PromptError(f"{file} can't be read: {error.strerror}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PromptError(f"{file}: {error}.") from error
    for alias, chain in models.items():
        if not chain:
            raise PromptError(f"{file}: the alias {alias} names no model.")
    targets = {target for chain in models.values() for target in chain}
    for (provider, model), times in Counter((target.provider, target.model) for target in targets).items():
        if times > 1:
            two = f"{provider} {model} has two prices or two limits"
            raise PromptError(f"{file}: {two}. Give it the same wherever it stands.")
    return models


def _prompt(folder: Path, file: Path, environment: ImmutableSandboxedEnvironment) -> Prompt:
    name = file.parent.relative_to(folder).as_posix()
    number = FILE.fullmatch(file.name)
    if number is None or not NAME.fullmatch(name):
        raise PromptError(f"{file}: a prompt is <name>/v<N>.md, in lower-case letters, digits and underscores.")
    raw = file.read_bytes()
    head, system, user = _split(file, raw)
    prompt = Prompt(
        name=name,
        version=int(number[1]),
        hash=hashlib.sha256(raw).hexdigest(),
        text=raw.decode(),
        file=file,
        head=head,
        system=_compile(file, environment, system) if system is not None else None,
        user=_compile(file, environment, user),
    )
    _check_variables(file, environment, head, (system or "") + user)
    return prompt


def _split(file: Path, raw: bytes) -> tuple[Head, str | None, str]:
    try:
        text = raw.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise PromptError(f"{file} is not UTF-8: {error.reason} at byte {error.start}.") from error
    match = HEAD.match(text)
    if match is None:
        raise PromptError(f"{file}: begin with a TOML head between two lines of +++.")
    try:
        head = msgspec.toml.decode(match[1], type=Head)
    except msgspec.DecodeError as error:
        raise PromptError(f"{file}: in the head: {error}.") from error
    before, *parts = PART.split(match[2])
    match parts:
        case []:
            return head, None, before
        case ["user", user] if not before.strip():
            return head, None, user
        case ["system", system, "user", user] if not before.strip():
            return head, system, user
    raise PromptError(f"{file}: the body is plain text, or --- system --- and then --- user ---, with nothing before.")


def _compile(file: Path, environment: ImmutableSandboxedEnvironment, source: str) -> Fill:
    """Text without a brace has no blank: it is what it renders to, where its lines end as Jinja2's do."""
    if "{" not in source and "\r" not in source:
        return lambda _: source.strip()
    try:
        template = environment.from_string(source)
    except TemplateError as error:
        raise PromptError(f"{file}: the body is no Jinja2: {error}.") from error
    return lambda variables: template.render(variables).strip()


def _check_variables(file: Path, environment: ImmutableSandboxedEnvironment, head: Head, body: str) -> None:
    used = meta.find_undeclared_variables(environment.parse(body))
    for name in sorted(used - set(head.variables)):
        raise PromptError(f'{file}: the body uses "{name}", which variables = [...] does not declare.')
    for name in sorted(set(head.variables) - used):
        raise PromptError(f'{file}: variables = [...] declares "{name}", which the body does not use.')
