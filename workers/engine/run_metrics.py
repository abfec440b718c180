"""What is counted of runs, steps and calls, each where it is stored."""

import time
from functools import lru_cache
from typing import Final

from msgspec import Struct, json

from schemas.outcome import Dead, Done, HandedBack, Later, Outcome
from service.core.metrics import Meters
from workers.engine.claim import Claimed
from workers.kit.memory import Facts
from workers.models.client import Call

UNKNOWN: Final = "unknown"
"""A type, or a pipeline, that this worker has not: it may be any text."""


class _ErrorKind(Struct, frozen=True):
    kind: str


def settled(meters: Meters, claimed: Claimed, pipeline: str | None, outcome: Outcome, facts: Facts) -> None:
    """A claim that has ended, under the claim."""
    name = pipeline or UNKNOWN
    what = _name(outcome)
    meters.observe("callboard_run_duration_seconds", time.perf_counter() - facts.begun, (name, what))
    if isinstance(outcome, Done | Dead):
        meters.add("callboard_events_ended_total", (claimed.type, what))
    if isinstance(outcome, Dead | Later):
        error = json.decode(outcome.error, type=_ErrorKind).kind if outcome.error else UNKNOWN
        meters.add("callboard_run_failures_total", (name, error, what))
    for step in facts.steps:
        if step.state == "recalled":
            meters.add("callboard_llm_recalled_total", (name,))
        else:
            labels = (name, _node(step.step), step.state)
            meters.observe("callboard_step_duration_seconds", step.ms / 1000, labels)


def called(meters: Meters, call: Call) -> None:
    """A call that has ended."""
    where, simulated = (call.provider, call.model), str(call.simulated).lower()
    meters.add("callboard_llm_calls_total", (*where, call.outcome, simulated))
    meters.observe("callboard_llm_call_duration_seconds", call.ms / 1000, where)
    meters.add("callboard_llm_tokens_total", (*where, "input", simulated), call.tokens_in)
    meters.add("callboard_llm_tokens_total", (*where, "output", simulated), call.tokens_out)
    meters.add("callboard_llm_cost_usd_total", (*where, simulated), call.cost_usd)
    version = (call.prompt, str(call.version))
    meters.add("callboard_llm_prompt_calls_total", (*version, call.outcome))
    meters.add("callboard_llm_prompt_cost_usd_total", version, call.cost_usd)


def _name(outcome: Outcome) -> str:
    match outcome:
        case Done():
            return "succeeded"
        case Dead():
            return "dead"
        case Later(charged=charged):
            return "failed" if charged else "snoozed"
        case HandedBack():
            return "handed_back"


@lru_cache(1024)
def _node(step: str) -> str:
    """The node of a step's key, behind its branch, without the item, the arguments or the ordinal."""
    return step.partition("[")[0].partition("#")[0].partition(":")[0]
