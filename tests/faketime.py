"""A clock that is off, for one program alone: libfaketime, from Debian's package `libfaketime`."""

from pathlib import Path
from typing import Final

from tests.debian import unpacked


class WrongClock:
    """The wall clock of the programs that are started with `environ`; it can be set while they run.

    What measures durations, the monotonic clock, is left as it is: a machine whose time is set has that right, too.
    """

    def __init__(self, folder: Path, off_s: int) -> None:
        self._file: Final = folder / "clock"
        self.set(off_s)
        self.environ: Final = {
            "LD_PRELOAD": str(_library(folder)),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, off_s: int) -> None:
        """The clock steps to so many seconds ahead of the right time."""
        written = self._file.with_suffix(".new")
        written.write_text(f"{off_s:+d}", encoding="ascii")
        written.replace(self._file)


def _library(folder: Path) -> Path:
    """Skips the test where the package can't be had, but for CI, where that is a failure."""
    (found,) = unpacked(folder / "libfaketime", "libfaketime").rglob("libfaketime.so.1")
    return found
