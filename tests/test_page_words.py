"""What the pages name exists: each command and option, each setting, and what `run` has."""

import ast
import re
from collections.abc import Iterator
from inspect import Parameter, signature
from typing import Any, Final, get_type_hints

import click
import pytest

from service.cli import command_line
from tests.pages import FENCE, PAGES, commands, prose, rows
from workers import kit
from workers.kit import Run

# `C` is the command line on a host, as deploy/operations.md says.
COMMAND: Final = re.compile(r"(?:(?:\w+=\S* )*|.* (?:tool|--) |.*\$\()(?:\.venv/bin/callboard|callboard|C) ([a-z].*)")
SETTING: Final = re.compile(r"\bCALLBOARD_[A-Z_]*[A-Z]\b")
CODE: Final = re.compile(r"`([^`]+)`")


def spans(page: str) -> list[str]:
    """What stands in backticks, and the commands in blocks, each in one line."""
    return [*(" ".join(span.split()) for span in CODE.findall(prose(PAGES[page]))), *commands(PAGES[page])]


def options(command: click.Command) -> set[str]:
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return own | {"--help"}


def below(command: click.Command) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        for name in command.list_commands(CONTEXT):
            if inner := command.get_command(CONTEXT, name):
                yield from below(inner)


def found(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that these words lead to, and the words behind it."""
    command: click.Command = CONTEXT.command
    while words and isinstance(command, click.Group) and re.fullmatch("[a-z][a-z-]*", words[0]):
        inner = command.get_command(CONTEXT, words[0])
        assert inner, words
        command, words = inner, words[1:]
    return command, words


CONTEXT: Final = click.Context(command_line({}))
OPTIONS: Final = {option for command in below(CONTEXT.command) for option in options(command)}


@pytest.mark.parametrize("page", [page for page in PAGES if any(COMMAND.fullmatch(span) for span in spans(page))])
def test_commands_and_their_options_exist(page: str) -> None:
    for match in filter(None, map(COMMAND.fullmatch, spans(page))):
        command, words = found(match[1].split())
        named = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert named <= options(command), match[0]


def test_options_that_stand_alone_exist() -> None:
    """Of which command the sentence says; those of other programs stand in `deploy/` only."""
    pages = [page for page in PAGES if not page.startswith("deploy/")]
    alone = {span.split()[0] for page in pages for span in spans(page) if re.match("--[a-z]", span)}
    assert len(alone) > 9
    assert alone <= OPTIONS


def test_settings_exist() -> None:
    named = {name for page in PAGES for name in SETTING.findall(PAGES[page])}
    known = {row[0].strip("`") for row in rows("deploy/settings.md", "setting")}
    assert len(named) > 20
    assert named <= known


def shown() -> Iterator[ast.Call]:
    """Each call that is written in Python, in a sentence or in a block."""
    for text in PAGES.values():
        blocks = [code for language, code in FENCE.findall(text) if language == "python"]
        for code in (*blocks, *CODE.findall(prose(text))):
            try:
                tree = ast.parse(code.replace("…", "...").removeprefix("@").removeprefix("await "))
            except SyntaxError:
                continue
            yield from (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def of_run(chain: list[str]) -> Any:
    """What this is of `run`, by annotations; a name that `Run` or its part lacks is an AttributeError."""
    kind: Any = Run
    for name in chain:
        value = getattr(kind, name)
        kind = get_type_hints(value.fget)["return"] if isinstance(value, property) else value
    return kind


def test_what_is_called_takes_the_arguments_that_are_shown() -> None:
    checked = set()
    for call in shown():
        name, *chain = ast.unparse(call.func).split(".")
        if name != "run" and not (name in kit.__all__ and not chain):
            continue
        takes = signature(of_run(chain) if name == "run" else getattr(kit, name)).parameters
        named = {keyword.arg for keyword in call.keywords}
        assert named <= takes.keys() or Parameter.VAR_KEYWORD in {one.kind for one in takes.values()}, ast.unparse(call)
        checked.add(ast.unparse(call.func))
    assert checked >= {
        "Pipeline",
        "Retry",
        "parallel",
        "each",
        "run.llm.ask",
        "run.web.post",
        "run.vectors.search",
        "run.emit",
    }


def test_what_a_pipeline_takes_is_said() -> None:
    said = PAGES["workers/README.md"]
    assert [name for name in signature(kit.Pipeline).parameters if name != "body" and f"{name}=" not in said] == []
