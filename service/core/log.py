"""Logs are JSON lines on stderr; on a terminal, one plain line each. No secrets; above debug nothing an event said."""

import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final

from msgspec import json

from schemas.text import storable
from service.core.traces import formatted

RUN: Final[ContextVar[Callable[[], Mapping[str, Any]]]] = ContextVar("run", default=dict)
"""Of whatever is logged while an event is run, by the user's code too: `event`, `run`, `attempt`, `trace`."""
STEP: Final = ContextVar("step", default="")

INVALID: Final = "Invalid HTTP request received."
INVALID_EVERY_S: Final = 10.0

_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
# Control characters of ASCII and of ISO 8859-1 but for tab and newline, and those that turn the direction of text.
_COMMANDS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# A caller's key or session, as service/access/keys.py makes them: its beginning names it, the rest is the secret.
_CALLERS: Final = re.compile(r"\b(c[bs]_[A-Za-z0-9]{8})[A-Za-z0-9]{36}\b")


class Lines(logging.Formatter):
    """JSON: at, level, logger, message, what is run, and whatever was given as `extra`; else the plain line."""

    def __init__(self, secrets: tuple[str, ...], *, plain: bool, with_payloads: bool) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s  %(message)s", "%H:%M:%S")
        self._secrets: Final = secrets
        self._plain: Final = plain
        self._with_payloads: Final = with_payloads

    def format(self, record: logging.LogRecord) -> str:
        line = _printable(super().format(record)) if self._plain else self._json(record)
        for secret in self._secrets:
            line = line.replace(secret, "***")
        return _CALLERS.sub(r"\1***", line)

    def _json(self, record: logging.LogRecord) -> str:
        fields = self._fields(record)
        try:
            return json.encode(fields, enc_hook=str).decode()
        except (TypeError, ValueError, RecursionError):  # a stranger's text, in a value that somebody logged
            plain = {storable(name): storable(str(value)) for name, value in fields.items()}
            return json.encode(plain).decode()

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **RUN.get()(),
        }
        if step := STEP.get():
            fields["step"] = step
        fields |= {name: value for name, value in vars(record).items() if name not in _OWN}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return fields

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """Where it was raised and as what. An error's text may quote what an event said: it is for debug only."""
        return super().formatException(ei) if self._with_payloads else formatted(ei[1]) if ei[1] else ""


def _printable(text: str) -> str:
    """For a terminal, to which some characters are commands: a stranger's text may hold them."""
    return _COMMANDS.sub(lambda match: ascii(match[0])[1:-1], storable(text))


def _first_line(record: logging.LogRecord) -> bool:
    """What asyncio says of a task that nobody awaited has the task's error on the second line, text and all."""
    record.msg, record.args = record.getMessage().partition("\n")[0], ()
    return True


def _seldom_invalid() -> Callable[[logging.LogRecord], bool]:
    """uvicorn says that a request is none for each of them: whoever sends nothing else would fill the log."""
    seldom = Seldom(INVALID_EVERY_S)
    return lambda record: record.msg != INVALID or seldom.now()


def setup(level: int = logging.INFO, secrets: tuple[str, ...] = ()) -> None:
    """Send everything to stderr, once per process; quiet the libraries that talk at every step.

    `secrets` are blanked out wherever they turn up, in the words of libraries and of user code too.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(secrets, plain=sys.stderr.isatty(), with_payloads=level <= logging.DEBUG))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("asyncio").filters = [] if level <= logging.DEBUG else [_first_line]
    logging.getLogger("uvicorn.error").filters = [_seldom_invalid()]
    for noisy in ("arq", "httpx", "httpx2", "httpcore", "httpcore2", "openai", "anthropic", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class Seldom:
    """For what may come again with each turn, and is to be said once in `every_s` seconds."""

    def __init__(self, every_s: float) -> None:
        self._every_s: Final = every_s
        self._quiet_until = 0.0

    def now(self) -> bool:
        """Whether it is time to say it once more."""
        now = time.monotonic()
        if now < self._quiet_until:
            return False
        self._quiet_until = now + self._every_s
        return True
