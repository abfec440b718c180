"""A pipeline: what runs for an event type."""

from typing import Annotated

from msgspec import Meta, Struct

from schemas import Event
from workers.kit.flow import Flow

Seconds = Annotated[float, Meta(gt=0)]


class Retry(Struct, frozen=True):
    """Exponential backoff with full jitter: the n-th wait is uniform up to `base_s` · 2^n, at most `cap_s`."""

    attempts: Annotated[int, Meta(ge=1)] = 5
    base_s: Seconds = 1.0
    cap_s: Seconds = 300.0


class Pipeline(Struct, frozen=True):
    """Runs `flow` for every event of type `on`; `timeout_s` bounds one attempt.

    The name, shown to operators, is the name of the module variable it is assigned to.
    """

    on: type[Event]
    flow: Flow
    retry: Retry = Retry()
    timeout_s: Seconds = 120.0
