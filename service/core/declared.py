"""Which variables the user's own files name, read in their source: to import them would import SDKs and clients."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from schemas.origin import line_of
from service.core.errors import SettingsError

FOLDER: Final = Path(__file__).parents[2] / "workers"
EXAMPLE: Final = FOLDER.parent / "deploy" / "env.example"


class Variables(Struct, frozen=True):
    """`keys` are what the provider can't be asked without, `options` what it may be told besides."""

    keys: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def variables_of_providers(folder: Path = FOLDER) -> Mapping[str, Variables]:
    """By provider. Raises SettingsError where `KEYS` or `OPTIONS` is no tuple of texts."""
    return {file.stem: _variables(file) for file in sorted((folder / "providers").glob("[!_]*.py"))}


def variables_of_settings(folder: Path = FOLDER) -> Mapping[str, str]:
    """Of the Settings in nodes and pipelines: each variable, and the Struct and line that name it."""
    return {
        field.target.id.upper(): f"{struct.name}, {line_of(str(file), struct.lineno)}"
        for name in ("nodes", "pipelines")
        for file in sorted((folder / name).rglob("*.py"))
        for struct in _body(file)
        if isinstance(struct, ast.ClassDef) and any(ast.unparse(base).endswith("Settings") for base in struct.bases)
        for field in struct.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def complete(example: Path = EXAMPLE, folder: Path = FOLDER) -> list[str]:
    """Write the variables that env.example does not list yet at its end. Gives their names."""
    text = example.read_text(encoding="utf-8") if example.exists() else ""
    listed = set(re.findall(r"^#? ?([A-Z_0-9]+)=", text, re.MULTILINE))
    wanted = {
        name: f"workers/providers/{provider}.py"
        for provider, known in variables_of_providers(folder).items()
        for name in (*known.keys, *known.options)
    }
    wanted |= variables_of_settings(folder)
    lines = [f"# {where}\n# {name}=\n" for name, where in wanted.items() if name not in listed]
    if text and lines:
        example.write_text(text.rstrip("\n") + "\n\n" + "".join(lines), encoding="utf-8")
    return sorted(wanted.keys() - listed) if text else []


def _body(file: Path) -> list[ast.stmt]:
    try:
        return ast.parse(file.read_bytes()).body
    except SyntaxError:  # the worker says where
        return []


def _variables(file: Path) -> Variables:
    values = {
        target.id: _texts(file, node)
        for node in _body(file)
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id in ("KEYS", "OPTIONS")
    }
    return Variables(values.get("KEYS", ()), values.get("OPTIONS", ()))


def _texts(file: Path, node: ast.Assign | ast.AnnAssign) -> tuple[str, ...]:
    try:
        value: Any = ast.literal_eval(node.value or ast.Constant(None))
    except ValueError:
        value = None
    if not isinstance(value, tuple) or not all(isinstance(name, str) and name.isupper() for name in value):
        where = line_of(str(file), node.lineno)
        raise SettingsError(f'{where} is no tuple of the names of variables. Write KEYS = ("OURS_API_KEY",).')
    return value
