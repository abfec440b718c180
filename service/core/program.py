"""What every program of ours is told: to end in order at SIGTERM and SIGINT, and that it is a server."""

import gc
import os
import signal
from collections.abc import Callable
from typing import Final

MISFIT: Final = 78
"""The exit status of a program that can't start until somebody mends a file: EX_CONFIG of sysexits.h."""
ENDING: Final = (signal.SIGTERM, signal.SIGINT)
# Python's own is 700, or 2,000: with hundreds of calls under way, whose frames all live, that is a third of the time.
NEW_MAX: Final = 20_000


def on_end(do: Callable[[], object]) -> None:
    """The first signal ends the program, the next ones change nothing, to its very end.

    Not by `add_signal_handler`: a loop that closes would give the signals their deadly default back.
    """
    for number in ENDING:
        signal.signal(number, lambda *_: do())


def leave() -> None:
    """For a program that has nothing in hand yet, or no more.

    Not by SystemExit: raised in a finalizer or a callback of a weak reference, of which imports run many, it is ignored
    and the program goes on; raised while a module in C is imported, it may crash.
    """
    os._exit(0)


def ignore() -> None:
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def freeze_gc() -> None:
    """Once it is up: the garbage collector does not look through what it is made of, and less often at what is new."""
    gc.freeze()
    gc.set_threshold(NEW_MAX)
