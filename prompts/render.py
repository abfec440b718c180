"""Fills a prompt's variables in: sandboxed Jinja2."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from prompts.prompt import Fill, Prompt, PromptError, Rendered

ROOT: Final = Path(__file__).parent.parent
ENVIRONMENT: Final = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


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


def compile_body(file: Path, source: str) -> Fill:
    """Text without a brace has no blank: it is what it renders to, where its lines end as Jinja2's do."""
    if "{" not in source and "\r" not in source:
        return lambda _: source.strip()
    try:
        template = ENVIRONMENT.from_string(source)
    except TemplateError as error:
        raise PromptError(f"{file}: the body is no Jinja2: {error}.") from error
    return lambda variables: template.render(variables).strip()


def variables_of(body: str) -> set[str]:
    """The names that a body uses and does not set itself."""
    return meta.find_undeclared_variables(ENVIRONMENT.parse(body))


def _where(prompt: Prompt) -> str:
    """Its file by the path below the project's folder: callers of the API see this, and not where that folder is."""
    is_ours = prompt.file.is_relative_to(ROOT)
    return f'Prompt "{prompt.name}" ({prompt.file.relative_to(ROOT) if is_ours else prompt.file.name})'
