"""SIGTERM and SIGINT: the first one ends a program in order, the next ones change nothing, to its very end."""

import os
import signal
from collections.abc import Callable
from typing import Final

ENDING: Final = (signal.SIGTERM, signal.SIGINT)


def on_end(do: Callable[[], object]) -> None:
    """Not by `add_signal_handler`: a loop that closes would give the signals their deadly default back."""
    for each in ENDING:
        signal.signal(each, lambda *_: do())


def leave() -> None:
    """For a program that has nothing in hand yet, or no more.

    Not by SystemExit: raised in a finalizer or a callback of a weak reference, of which imports run many, it is ignored
    and the program goes on; raised while a module in C is imported, it may crash.
    """
    os._exit(0)


def ignore() -> None:
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
