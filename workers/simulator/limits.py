"""Rate limits as the providers have them: requests and tokens a minute, coming back steadily, and calls at a time."""

import math
import time
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from service.core.errors import SettingsError

MODELS_MAX: Final = 1000

Many = Annotated[int, Meta(ge=1)]
What = Literal["requests", "tokens"]


class Limit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """For `model`, or for each model by itself that has none of its own; None is unlimited."""

    model: str = ""
    requests: Many | None = None
    tokens: Many | None = None
    concurrent: Many | None = None


class Left(Struct, frozen=True):
    what: What
    limit: int
    left: int
    reset_s: float


class Refusal(Struct, frozen=True):
    what: str
    after_s: float


class Bucket:
    """`limit` a minute; full at first."""

    def __init__(self, limit: int) -> None:
        self.limit: Final = limit
        self._level = float(limit)
        self._at = time.monotonic()

    def after_s(self, amount: int) -> float:
        """How long until there is that much; 0 for now."""
        now = time.monotonic()
        self._level = min(self.limit, self._level + (now - self._at) * self.limit / 60)
        self._at = now
        return max(0.0, (min(amount, self.limit) - self._level) * 60 / self.limit)

    def take(self, amount: int) -> None:
        self._level -= amount

    def left(self, what: What) -> Left:
        return Left(what, self.limit, max(0, int(self._level)), self.after_s(self.limit))


class Gauge:
    def __init__(self, limit: Limit) -> None:
        per_minute: dict[What, int | None] = {"requests": limit.requests, "tokens": limit.tokens}
        self._buckets = {what: Bucket(many) for what, many in per_minute.items() if many}
        self._concurrent = limit.concurrent or math.inf
        self._running = 0

    def enter(self, tokens: int) -> Refusal | None:
        """None is a yes, which ends with `leave`."""
        if self._running >= self._concurrent:
            return Refusal("concurrent requests", 1.0)
        amounts = {"requests": 1, "tokens": tokens}
        for what, bucket in self._buckets.items():
            if after_s := bucket.after_s(amounts[what]):
                return Refusal(f"{what} per minute", after_s)
        for what, bucket in self._buckets.items():
            bucket.take(amounts[what])
        self._running += 1
        return None

    def leave(self) -> None:
        self._running -= 1

    def left(self) -> list[Left]:
        return [bucket.left(what) for what, bucket in self._buckets.items()]


class Limiter:
    """The gauges, made when a model is first asked."""

    def __init__(self, limits: tuple[Limit, ...]) -> None:
        self._limits = {model_limits.model: model_limits for model_limits in limits}
        self._gauges: dict[str, Gauge] = {}

    def gauge(self, model: str) -> Gauge:
        limit = self._limits.get(model) or self._limits.get("") or Limit()
        if model in self._gauges:
            return self._gauges[model]
        if len(self._gauges) >= MODELS_MAX:
            return Gauge(limit)
        return self._gauges.setdefault(model, Gauge(limit))


def parse(text: str) -> Limit:
    """`requests=60,tokens=10000,concurrent=5,model=gpt-6-luna`, any of them. Raises SettingsError."""
    options = dict(part.partition("=")[::2] for part in text.split(","))
    try:
        return msgspec.convert(options, Limit, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(
            f"{text!r} is no limit: {error}. One or more of requests= tokens= concurrent= model="
        ) from error
