"""SIGTERM and SIGINT: the first one ends a program in order, the next ones change nothing, to its very end."""

import signal
import sys
from collections.abc import Callable
from typing import Final

ENDING: Final = (signal.SIGTERM, signal.SIGINT)


def on_end(do: Callable[[], object]) -> None:
    """Not by `add_signal_handler`: a loop that closes would give the signals their deadly default back."""
    for each in ENDING:
        signal.signal(each, lambda *_: do())


def leave() -> None:
    ignore()
    sys.exit(0)


def ignore() -> None:
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
