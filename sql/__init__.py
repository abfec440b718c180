"""What is kept: migrations in number order, and named statements. SQL stands nowhere else."""

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Final

_NAME: Final = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)


def migrations() -> list[tuple[str, str]]:
    """(file name, text) of every migration, in the order of their numbers."""
    folder = files("sql") / "migrations"
    statements = [
        (file.name, file.read_text(encoding="utf-8")) for file in folder.iterdir() if file.name.endswith(".sql")
    ]
    return sorted(statements)


def queries(topic: str) -> Mapping[str, str]:
    """The statements of `sql/queries/<topic>.sql` by the name each carries in a `-- name: …` line above it."""
    text = (files("sql") / "queries" / f"{topic}.sql").read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    names, bodies = parts[::2], [body.strip().rstrip(";") for body in parts[1::2]]
    if len(set(names)) != len(names):
        raise ValueError(f"sql/queries/{topic}.sql names a statement twice")
    return dict(zip(names, bodies, strict=True))


def columns(rows: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
    """The arrays of a statement that unnests them side by side: at least one row, each with a value for each array.

    An array of nulls only is replaced by an empty one: unnest pads it, and the driver has no elements to look at.
    """
    arrays = zip(*rows, strict=True)
    return [() if array[0] is None and array.count(None) == len(array) else array for array in arrays]


def topics() -> list[str]:
    """Every file of `sql/queries`, without its ending."""
    return sorted(
        file.name.removesuffix(".sql") for file in (files("sql") / "queries").iterdir() if file.name.endswith(".sql")
    )
