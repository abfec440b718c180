"""A pipeline: what runs for an event type."""

from typing import Annotated

from msgspec import Meta, Struct

from schemas import Event
from workers.kit.flow import Flow


class Retry(Struct, frozen=True):
    """Exponential backoff with full jitter: the n-th wait is uniform up to `base_s` · 2^n, at most `cap_s`."""

    attempts: Annotated[int, Meta(ge=1)] = 5
    base_s: Annotated[float, Meta(gt=0)] = 1.0
    cap_s: Annotated[float, Meta(gt=0)] = 300.0


class Pipeline(Struct, frozen=True):
    """Runs `flow` for every event of type `on`; `timeout_s` bounds one attempt.

    The name, shown to operators, is the name of the module variable it is assigned to.
    """

    on: type[Event]
    flow: Flow
    retry: Retry = Retry()
    timeout_s: Annotated[float, Meta(gt=0)] = 120.0
