"""The files of the user places that ship: the tests of the product run without what else stands there."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from schemas.origin import USER_PLACES

MINE: Final = "tests/mine"
PLACES: Final = (*USER_PLACES, "prompts")
SHIPPED: Final = {
    *(f"schemas/events/{name}.py" for name in ("__init__", "announcements", "chat", "documents", "tickets")),
    *(f"workers/nodes/{name}.py" for name in ("__init__", "announcements", "chat", "documents", "pager", "triage")),
    *(f"workers/pipelines/{name}.py" for name in ("__init__", "announcements", "chat", "documents", "support")),
    *(f"workers/providers/{name}.py" for name in ("__init__", "anthropic", "azure", "gemini", "local", "mistral")),
    *("workers/providers/openai.py", "prompts/models.toml", "prompts/chat/answer/v1.md"),
    *(f"prompts/{name}.py" for name in ("__init__", "loader", "prompt", "render")),
    *(f"prompts/announcements/{name}/v1.md" for name in ("criticize", "draft", "redraft")),
    *(f"prompts/tickets/{name}/v1.md" for name in ("check", "classify", "draft", "language")),
}
# Of no use in a copy, or shared with it.
LEFT_OUT: Final = (".git", ".callboard", ".hypothesis", ".pytest_cache", ".ruff_cache", "__pycache__")
SHARED: Final = (".venv", ".mypy_cache")


def of_users(root: Path) -> list[str]:
    """What somebody added, by its path from the root."""
    files = (file for place in PLACES for file in (root / place).rglob("*") if file.is_file())
    paths = {file.relative_to(root).as_posix() for file in files if "__pycache__" not in file.parts}
    return sorted(paths - SHIPPED)


def copied(root: Path, to: Path) -> Path:
    shutil.copytree(root, to, ignore=shutil.ignore_patterns(*LEFT_OUT, *SHARED))
    for name in SHARED:
        if (root / name).exists():
            (to / name).symlink_to(root / name)
    return to


def run_without(added: Sequence[str], root: Path, arguments: Sequence[str], *, with_mine: bool) -> int:
    """Run pytest in a copy without these files, then the user's own tests where they are. Gives the exit status."""
    print(f"The tests of the product run without {len(added)} files of yours; {MINE} with them.", flush=True)
    command = (sys.executable, "-m", "pytest", *arguments)
    with TemporaryDirectory(prefix="callboard-") as folder:
        tree = copied(root, Path(folder, "tree"))
        for path in added:
            (tree / path).unlink()
        shutil.rmtree(tree / MINE, ignore_errors=True)
        status = subprocess.run(command, cwd=tree, check=False).returncode
    if status == 0 and with_mine and (root / MINE).exists():
        status = subprocess.run((*command, MINE), cwd=root, check=False).returncode
    return status
