"""Event ids: UUIDv7 (RFC 9562), so that newer ids sort later."""

import os
import time
from datetime import datetime
from uuid import UUID


def uuid7() -> UUID:
    """48 bits of milliseconds, 12 bits of the fraction below (RFC 9562 §6.2, method 3), 62 random bits."""
    ms, rest_ns = divmod(time.time_ns(), 1_000_000)
    fraction = rest_ns * 4096 // 1_000_000
    random = int.from_bytes(os.urandom(8), "big") >> 2
    return UUID(int=(ms & (1 << 48) - 1) << 80 | 7 << 76 | fraction << 64 | 2 << 62 | random)


def first_id(at: datetime) -> UUID:
    """The smallest UUIDv7 of that millisecond; before 1970 there is none."""
    return UUID(int=max(0, int(at.timestamp() * 1000)) << 80)
