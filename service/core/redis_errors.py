"""What is wrong with Redis, found out from its error: it is away, it refuses, or it takes no writes."""

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, Literal

from msgspec import Struct
from redis.exceptions import (
    AuthenticationError,
    InvalidResponse,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

Reason = Literal["away", "refused", "foreign", "read-only", "full"]
UNWRITABLE: Final = ("READONLY", "MISCONF", "NOREPLICAS", "NOWRITE")
WRONG: Final = (AuthenticationError, NoPermissionError, InvalidResponse, ssl.SSLError, PermissionError)
PASSING: Final = ("LOADING", "MASTERDOWN", "TRYAGAIN", "BUSY")
ACL: Final = "REDIS_URL: its user may not do what Callboard needs; deploy/README.md lists the keys and commands."


class ForeignRedis(RedisError):
    """The Redis belongs to another Callboard: nothing is read or written there."""


class Trouble(Struct, frozen=True):
    """What is wrong with a server, and since when."""

    reason: Reason
    since: datetime


class RedisState:
    """Whether a server does what is asked of it, as the last attempt has shown."""

    def __init__(self) -> None:
        self.trouble: Trouble | None = None

    def failed(self, error: BaseException) -> None:
        reason = reason_of(error)
        if self.trouble is None or self.trouble.reason != reason:
            self.trouble = Trouble(reason, datetime.now(UTC) if self.trouble is None else self.trouble.since)

    def worked(self) -> None:
        self.trouble = None


def reason_of(error: BaseException) -> Reason:
    """Of an error of Redis's; redis-py wraps some of them into its ConnectionError."""
    for cause in _chain(error):
        if isinstance(cause, ForeignRedis):
            return "foreign"
        if isinstance(cause, OutOfMemoryError) or str(cause).startswith("OOM"):
            return "full"
        if isinstance(cause, ReadOnlyError) or str(cause).startswith(UNWRITABLE):
            return "read-only"
        if isinstance(cause, ResponseError) and str(cause).startswith(PASSING):
            return "away"
        if isinstance(cause, WRONG):
            return "refused"
    passes = not isinstance(error, RedisError) or isinstance(error, RedisConnectionError | RedisTimeoutError)
    return "away" if passes else "refused"


def sentence_of(error: BaseException) -> str | None:
    """What has to be mended before Redis can be used, without a word of the address; None where it may pass."""
    return next((sentence for cause in _chain(error) if (sentence := _sentence(cause))), None)


def _sentence(error: BaseException) -> str | None:
    match error:
        case AuthenticationError():
            return "REDIS_URL: Redis refuses this user name or password, or asks for one. Look at both."
        case NoPermissionError():
            return ACL
        case InvalidResponse():
            return "REDIS_URL: what answers there is no Redis."
        case ssl.SSLCertVerificationError():
            return (
                f"REDIS_URL: the certificate of Redis is not trusted ({error.verify_message}). Set ssl_ca_certs=FILE."
            )
        case ssl.SSLError():
            return "REDIS_URL: TLS with Redis fails. Does that port speak TLS? Without it, an address begins with redis://."
        case PermissionError():
            return "REDIS_URL: the socket of Redis may not be opened by this user."
        case ResponseError() if "DB index" in str(error):
            return "REDIS_URL: Redis has no database of that number."
        case _:
            return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that it was made of."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
