"""The audit log: a line for each refusal, sign-in, sign-out and write of documents, within bounds; a count of all."""

import logging
import re
import time
from collections import Counter
from typing import Final, Literal

from service.access.keys import PREFIX_CHARS
from service.core.metrics import Meters

MINUTE_S: Final = 60.0
LINES_OF_ONE: Final = 10  # a minute, of one key, address, route and status
LINES_OF_ALL: Final = 100  # a minute, of one action: some 40 MB a day where somebody floods it
_SECRET: Final = re.compile(r"c[bs]_[A-Za-z0-9]{44}")

log = logging.getLogger("callboard.audit")

Action = Literal[
    "replay",
    "cancel",
    "discard",
    "create_key",
    "limit_key",
    "revoke_key",
    "end_sessions",
    "sign_in",
    "sign_out",
    "write_documents",
    "forget",
]
"""What is done and goes on record in the table `operations`."""
Source = tuple[str, str, str, int]


class Audit:
    """The lines of one process. Each action has a ration of its own, so that a flood of refusals hides no sign-in."""

    def __init__(self, meters: Meters) -> None:
        self._meters: Final = meters
        self._rations: Final[dict[str, _Ration]] = {}

    def note(self, action: str, key: str, address: str, route: str, status: int) -> None:
        """`key` is the prefix of the caller's key, or another name of the caller; never the key itself."""
        self._meters.add("callboard_audit_total", (action, str(status)))
        ration = self._rations.setdefault(action, _Ration())
        if left_out := ration.renewed():
            log.warning("%d more lines of %s were left out before: callboard_audit_total has all", left_out, action)
        if ration.take((key, address, route, status)):
            fields = {"action": action, "key": key, "address": address, "route": route, "status": status}
            log.info("%s %d: key %s from %s, %s", action, status, key, address, route, extra=fields)


class _Ration:
    def __init__(self) -> None:
        self._until = 0.0
        self._lines: Final[Counter[Source]] = Counter()
        self._total = 0
        self._left_out = 0

    def renewed(self) -> int:
        """How many lines were left out, once their minute is over."""
        now = time.monotonic()
        if now < self._until:
            return 0
        left_out, self._left_out, self._total, self._until = self._left_out, 0, 0, now + MINUTE_S
        self._lines.clear()
        return left_out

    def take(self, source: Source) -> bool:
        """Whether there is a line for it."""
        if self._total >= LINES_OF_ALL or self._lines[source] >= LINES_OF_ONE:
            self._left_out += 1
            return False
        self._lines[source] += 1
        self._total += 1
        return True


def named(presented: str) -> str:
    """The name of a presented key in a line of the log. A text that has not the form of a key may be another secret."""
    if not presented:
        return "none"
    return presented[:PREFIX_CHARS] if _SECRET.fullmatch(presented) else "unknown"
