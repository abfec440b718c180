"""What a run has measured goes into the RESULTS.md beside it, where somebody asks for that: `make results`."""

import os
from pathlib import Path
from typing import Final

BEGIN: Final = "<!-- `make results` writes what stands between these two lines. -->\n"
END: Final = "<!-- the end of what it writes -->\n"


def record(page: Path, text: str) -> None:
    """Put `text` where the results of the run before stand. Raises ValueError for a page without that place."""
    if os.environ.get("RESULTS"):
        above, rest = page.read_text(encoding="utf-8").split(BEGIN)
        _, below = rest.split(END)
        page.write_text(f"{above}{BEGIN}\n{text}\n{END}{below}", encoding="utf-8")
