"""How the simulator is set up: how long it thinks, what it allows, which faults are on from the beginning."""

import math
from random import Random
from typing import Annotated, Final

from msgspec import Meta, Struct

from workers.simulator.faults import Fault
from workers.simulator.limits import Limit

SPREAD: Final = 2.5
SIGMAS_TO_P99: Final = 2.326

Milliseconds = Annotated[float, Meta(ge=0, le=3_600_000)]


class Behaviour(Struct, frozen=True, kw_only=True):
    """`latency_ms` is the median of a lognormal distribution, for a plain reply and for the first token of a stream
    that has no `first_token_ms`; `latency_p99_ms` is 2.5 times that where it is not given."""

    seed: int = 0
    latency_ms: Milliseconds = 20.0
    latency_p99_ms: Milliseconds | None = None
    first_token_ms: Milliseconds | None = None
    token_ms: Milliseconds = 0.0
    limits: tuple[Limit, ...] = ()
    faults: tuple[Fault, ...] = ()
    log_file: str = ""

    def latency_s(self, random: Random, *, streams: bool) -> float:
        own = self.first_token_ms if streams else None
        median_ms = self.latency_ms if own is None else own
        return median_ms / 1000 * math.exp(random.gauss(0, self._sigma))

    @property
    def _sigma(self) -> float:
        p99_ms = self.latency_p99_ms
        spread = SPREAD if p99_ms is None or not self.latency_ms else max(1.0, p99_ms / self.latency_ms)
        return math.log(spread) / SIGMAS_TO_P99
