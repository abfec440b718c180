"""Reads and checks every prompt, `prompts/<name>/v<N>.md`, and `models.toml`."""

import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Final

import msgspec

from prompts.prompt import Head, Prompt, PromptError, Prompts, Target
from prompts.render import compile_body, variables_of

HERE: Final = Path(__file__).parent
HEAD: Final = re.compile(r"\A\+\+\+[ \t]*\n(.*?)^\+\+\+[ \t]*\n(.*)\Z", re.DOTALL | re.MULTILINE)
PART: Final = re.compile(r"^--- (\w+) ---[ \t]*\n", re.MULTILINE)
FILE: Final = re.compile(r"v([1-9]\d*)\.md")
NAME: Final = re.compile(r"[a-z][a-z0-9_]*(/[a-z][a-z0-9_]*)*")


def load(folder: Path = HERE) -> Prompts:
    """Read every prompt below `folder` and its models.toml.

    Raises PromptError with the file's name where anything in it does not fit.
    """
    models = _models(folder / "models.toml")
    versions: dict[str, dict[int, Prompt]] = {}
    for file in sorted(folder.rglob("*.md")):
        prompt = _prompt(folder, file)
        if prompt.model not in models:
            raise PromptError(f'{file}: model = "{prompt.model}" is no alias of models.toml ({", ".join(models)}).')
        versions.setdefault(prompt.name, {})[prompt.version] = prompt
    return Prompts(versions, models)


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


def _prompt(folder: Path, file: Path) -> Prompt:
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
        system=compile_body(file, system) if system is not None else None,
        user=compile_body(file, user),
    )
    _check_variables(file, head, (system or "") + user)
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


def _check_variables(file: Path, head: Head, body: str) -> None:
    used = variables_of(body)
    for name in sorted(used - set(head.variables)):
        raise PromptError(f'{file}: the body uses "{name}", which variables = [...] does not declare.')
    for name in sorted(set(head.variables) - used):
        raise PromptError(f'{file}: variables = [...] declares "{name}", which the body does not use.')
