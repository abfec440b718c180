"""Which release this is."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]


def release() -> str:
    """The text of the file VERSION, which a deployment puts beside the code; `dev` in a checkout."""
    try:
        return (ROOT / "VERSION").read_text(encoding="utf-8").strip() or "dev"
    except OSError:
        return "dev"
