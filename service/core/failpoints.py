"""Named places where a test makes a process fail; inert unless CALLBOARD_FAILPOINTS arms them.

`CALLBOARD_FAILPOINTS=accept_committed=kill,reader_turn=raise` kills the process (SIGKILL) or raises there;
`name=action@0.1` does so in one of ten cases, `step_kept:classify=kill` at that step only.
"""

import os
import random
import signal
from typing import Final

from service.core.errors import SettingsError
from service.core.settings import Settings

NAMES: Final = (
    "accept_begin",  # before the accepting statement
    "accept_committed",  # behind the commit, before anybody is told
    "claim_committed",  # behind the claim, before XACK
    "run_ended",  # behind a run, before its ending is stored
    "settle_begin",  # before the settling statement
    "settle_committed",  # behind it, before the next of the mailbox is notified
    "letter_numbered",  # before a dead letter goes to the stream
    "reader_turn",  # in the reader's loop
    "step",  # before each step
    "step_done",  # behind a step that cost something, before its result is stored
    "step_kept",  # behind that, before anybody is told
)
ACTIONS: Final = ("kill", "raise")


class Failpoint(Exception):
    """A bug on purpose."""


def check(settings: Settings) -> None:
    """Raises SettingsError where CALLBOARD_FAILPOINTS names a place or an action that there is not."""
    for name, (action, _) in _armed(settings.failpoints).items():
        if name.partition(":")[0] not in NAMES or action not in ACTIONS:
            raise SettingsError(f"CALLBOARD_FAILPOINTS: {name}={action} is not one of {NAMES} with one of {ACTIONS}.")


def hit(settings: Settings, name: str, of: str = "") -> None:
    """Fail here, where the settings say so; `of` tells one of many that come by."""
    if not settings.failpoints:
        return
    armed = _armed(settings.failpoints)
    action, chance = armed.get(f"{name}:{of}") or armed.get(name, ("", 0.0))
    if not action or random.random() >= chance:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise Failpoint(name)


def _armed(text: str) -> dict[str, tuple[str, float]]:
    """By name: the action and its probability."""
    armed = {}
    for entry in filter(None, text.split(",")):
        name, _, rest = entry.partition("=")
        action, _, chance = rest.partition("@")
        armed[name.strip()] = (action, float(chance or 1))
    return armed
