"""A package written by a test, imported and forgotten again."""

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from textwrap import dedent
from types import ModuleType

NUMBERS = count()


@contextmanager
def package(folder: Path, files: Mapping[str, str]) -> Iterator[ModuleType]:
    """The package of these files, under a name of its own; `HERE` in their text is that name."""
    name = f"user_code_{next(NUMBERS)}"
    for path, text in {"__init__.py": "", **files}.items():
        file = folder / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text).replace("HERE", name), encoding="utf-8")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        for module in [value for value in sys.modules if value.partition(".")[0] == name]:
            del sys.modules[module]
