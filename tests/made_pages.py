"""What `make pages` writes: the lower part of service/http/README.md and of service/cli/README.md, from the product.

What stands above MARK in these files is written by people, and stays.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import click

from service.cli import COMMANDS, command_line
from service.http.openapi import described
from service.http.routes import OPERATIONS
from tests.processes import ROOT

MARK: Final = "<!-- `make pages` writes all that stands below this line; edit nothing there. -->\n"
WIDTH: Final = 100
BOUNDS: Final = {
    "minimum": "from",
    "maximum": "to",
    "minLength": "characters from",
    "maxLength": "characters to",
    "minItems": "items from",
    "maxItems": "items to",
}


def http() -> str:
    """Every operation: its scope, its query, its body, its answers. A person's own event types are not among them."""
    api = described(OPERATIONS, {})
    schemas = api["components"]["schemas"]
    schemas["Envelope"] = schemas.pop("Attributes")
    shown: list[str] = []
    lines = ["\n## Requests and answers\n"]
    for path, operations in api["paths"].items():
        for method, operation in operations.items():
            lines.append(f"\n### {method.upper()} {path}\n")
            lines += _operation(operation, shown)
    lines.append("\n## Structs\n\nA field with a * has to be there.\n")
    for name in shown:  # which grows meanwhile by those that stand in others
        about = schemas[name].get("description", "").partition("\n\n")[0].replace("\n", " ")
        lines += [f"\n### {name}\n\n", *([f"{about}\n\n"] if about else []), *_fields(schemas[name], shown)]
    return "".join(lines)


def _operation(operation: Mapping[str, Any], shown: list[str]) -> Iterator[str]:
    needed = [scope for each in operation["security"] for scope in each["key"]]
    yield f"\n- scope: {f'`{needed[0]}`' if needed else 'none'}\n"
    for each in operation["parameters"]:
        if each["in"] == "query":
            yield f"- query `{each['name']}`: {_kind(each['schema'], shown)}\n"
    if "requestBody" in operation:
        yield f"- body: {_content(operation['requestBody']['content'], shown)}\n"
    for status, answer in operation["responses"].items():
        if status != "default":
            yield f"- answer {status}: {_content(answer['content'], shown)}\n"


def _content(content: Mapping[str, Any], shown: list[str]) -> str:
    schema = next(iter(content.values()))["schema"]
    return f"{_kind(schema, shown)}, as {' or '.join(f'`{media}`' for media in content)}"


def _fields(schema: Mapping[str, Any], shown: list[str]) -> Iterator[str]:
    yield "| field | |\n| --- | --- |\n"
    for name, field in schema["properties"].items():
        star = "*" if name in schema.get("required", ()) else ""
        null = " or null" if star and {"type": "null"} in field.get("anyOf", ()) else ""
        yield f"| `{name}`{star} | {_kind(field, shown) or 'JSON'}{null} |\n"


def _kind(schema: Mapping[str, Any], shown: list[str]) -> str:
    """A type in words, with its bounds and its default."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name not in shown:
            shown.append(name)
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_kind(each, shown) for each in schema["anyOf"] if each != {"type": "null"})
    if "enum" in schema:
        words = ", ".join(f"`{each}`" for each in schema["enum"])
    elif schema.get("type") == "array":
        words = f"list of {_kind(schema['items'], shown) or 'JSON'}"
    else:
        words = str(schema.get("format", schema.get("type", "")))
    bounds = [f"{word} {schema[name]:,}" for name, word in BOUNDS.items() if name in schema]
    default = schema.get("default")
    if default not in (None, {}, []):
        bounds.append(f"default {str(default).lower()}")
    return f"{words} ({', '.join(bounds)})" if bounds else words


def cli() -> str:
    """What `--help` says of each command."""
    group = command_line({})
    above = click.Context(
        group, info_name="callboard", terminal_width=WIDTH, max_content_width=WIDTH, help_option_names=["-h", "--help"]
    )
    shown = [_help(group.get_command(above, each.name), each.name, above) for each in COMMANDS]
    return "\n## Commands\n" + _text(group, above) + "".join(text for texts in shown for text in texts)


def _help(command: click.Command | None, name: str, above: click.Context) -> Iterator[str]:
    assert command, name
    context = click.Context(command, info_name=name, parent=above)
    yield _text(command, context)
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            yield from _help(command.get_command(context, each), each, context)


def _text(command: click.Command, context: click.Context) -> str:
    lines = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    return f"\n### {context.command_path}\n\n```text\n{lines}\n```\n"


MADE: Final = {"service/http/README.md": http, "service/cli/README.md": cli}


def made(page: str) -> str:
    """The whole page as it should be."""
    above, mark, _ = (ROOT / page).read_text(encoding="utf-8").partition(MARK)
    return above + (mark or MARK) + MADE[page]()


if __name__ == "__main__":
    for each in MADE:
        (ROOT / each).write_text(made(each), encoding="utf-8")
