"""The errors of the ground floor: three that stop the boot, two for who asks, two for events."""

from collections.abc import Sequence
from typing import Final

from schemas.text import storable

TEXT_MAX: Final = 2000


class CallboardError(Exception):
    """An error meant for people: what happened, where, what to do.

    It often quotes what a stranger said, a provider or user code, so its text is storable from the start.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(storable(argument) if isinstance(argument, str) else argument for argument in arguments))


class SettingsError(CallboardError):
    """A setting does not fit: the boot stops."""


class WiringError(CallboardError):
    """User code does not fit together, or uses the kit wrongly: the boot stops; of a run, its event is dead at once.

    To try again would not help; after the mend its event can be replayed.
    """


class StartError(CallboardError):
    """A part can't start (port, disk, binary): the boot stops."""


def text_of(error: BaseException, length_max: int = TEXT_MAX) -> str:
    """What the error says, storable; time-outs, and some errors of drivers, say nothing: then its kind.

    Raises nothing: the error may be a stranger's, whose `__str__` raises.
    """
    try:
        return storable(str(error), length_max) or kind_of(error)
    except BaseException as worse:  # noqa: BLE001 - `__str__` of a stranger may raise whatever there is
        return f"{kind_of(error)}, whose text can't be read: its __str__ raised {kind_of(worse)}"


def kind_of(error: BaseException) -> str:
    return storable(type(error).__name__, 200)


def kind_and_text(error: BaseException, length_max: int = TEXT_MAX) -> str:
    """`ValueError: no such page`."""
    kind, text = kind_of(error), text_of(error, length_max)
    return kind if text == kind else f"{kind}: {text}"[:length_max]


class Unavailable(CallboardError):
    """The service can't do this now: 503, ask again after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s: Final = retry_after_s


class TooMany(Unavailable):
    """This caller has as much under way as one caller may have; others are served: 429."""


class OverLimit(CallboardError):
    """This caller asks for more than it may have of `limit` (rate, open, queue): 429, again after `retry_after_s`."""

    def __init__(self, limit: str, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.limit: Final = limit
        self.retry_after_s: Final = retry_after_s


class Reject(CallboardError):
    """The event can't succeed, however often it is tried: dead at once, reason `rejected`."""


class Outage(CallboardError):
    """Something outside is away: the event is snoozed for `after_s`, and no attempt is charged.

    `known_delay`: it is known when it will be there, so that waits in a row need not double. `max_uncharged`: so many
    snoozes in a row are no attempt; None: all are. Others that are answered meanwhile show that it may be the event.
    `blocked_by`: whose recovery brings the event forward. `wait_max_s`: waits in a row double up to it.
    """

    def __init__(
        self,
        cause: str,
        after_s: float = 1.0,
        *,
        known_delay: bool = False,
        max_uncharged: int | None = None,
        blocked_by: Sequence[str] = (),
        wait_max_s: float = 600.0,
    ) -> None:
        super().__init__(cause)
        self.cause: Final = storable(cause)
        self.after_s: Final = after_s
        self.known_delay: Final = known_delay
        self.max_uncharged: Final = max_uncharged
        self.blocked_by: Final = blocked_by
        self.wait_max_s: Final = wait_max_s
