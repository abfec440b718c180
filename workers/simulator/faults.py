"""Faults on purpose: which, for whom, how often; and what each makes of a reply that was fine."""

import re
import time
from random import Random
from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import asdict, replace

from service.core.errors import SettingsError
from workers.simulator.script import Beat, Ending, Script

Kind = Literal[
    "status",  # an error status, with Retry-After where `retry_after` is given
    "quota",  # no credit left
    "refusal",  # the model does not want to
    "length",  # max_tokens is reached half-way
    "invalid",  # JSON that does not fit the schema
    "malformed",  # half of the JSON
    "html",  # a page with status 200
    "empty",  # {} with status 200
    "truncated",  # ends half-way, in order
    "cut",  # the connection is lost half-way
    "error_event",  # a stream ends half-way with an event that says error
    "stall",  # nothing more after half of it
    "drip",  # a few bytes every `wait_s`
    "hang",  # no answer at all
    "reset",  # the connection is reset at once
    "down",  # nobody listens, for `for_s`
]
DRIPS: Final = 20
DOWN_S: Final = 10.0
ARMED_MAX: Final = 100
PAGES: Final = {
    "html": ("text/html", b"<html><body><h1>Down for maintenance (simulated)</h1></body></html>"),
    "empty": ("application/json", b"{}"),
}
ENDINGS: Final[dict[str, Ending]] = {
    "hang": "silence",
    "stall": "silence",
    "reset": "cut",
    "down": "cut",
    "cut": "cut",
}


class Fault(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """`times` and `for_s` end it; `share` of the calls to `model` (all, if empty) have it."""

    kind: Kind
    status: Annotated[int, Meta(ge=400, le=599)] = 500
    retry_after: str = ""
    wait_s: Annotated[float, Meta(ge=0, le=60)] = 1.0
    model: str = ""
    share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    times: Annotated[int, Meta(ge=1)] | None = None
    for_s: Annotated[float, Meta(gt=0)] | None = None


class Armed(Struct):
    """A fault that is on; `left` counts down, `until` is on the monotonic clock."""

    fault: Fault
    left: int | None
    until: float | None


class Faults:
    """Those that are on: the first that fits a call is the one it has."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._armed: list[Armed] = []

    def arm(self, fault: Fault) -> None:
        if len(self.shown()) >= ARMED_MAX:
            raise SettingsError(f"{ARMED_MAX} faults are on already: DELETE /faults ends them all.")
        self._armed.append(Armed(fault, fault.times, fault.for_s and time.monotonic() + fault.for_s))

    def clear(self) -> None:
        self._armed.clear()

    def shown(self) -> list[dict[str, object]]:
        self._armed = [armed for armed in self._armed if armed.left != 0 and not _over(armed)]
        return [asdict(armed.fault) | {"left": armed.left} for armed in self._armed]

    def pick(self, model: str) -> Fault | None:
        for armed in self._armed:
            if armed.fault.model not in ("", model) or armed.left == 0 or _over(armed):
                continue
            if self._random.random() < armed.fault.share:
                armed.left = armed.left and armed.left - 1
                return armed.fault
        return None


def parse(text: str) -> Fault:
    """`529`, `429,retry_after=3600,times=5` or `cut,model=gpt-6-luna,share=0.3`. Raises SettingsError."""
    kind, *rest = re.split(r",(?=\w+=)", text.strip())
    options = dict(part.partition("=")[::2] for part in rest)
    options |= {"kind": "status", "status": kind} if kind.isdigit() else {"kind": kind}
    try:
        return msgspec.convert(options, Fault, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(
            f"{text!r} is no fault: {error}. An HTTP status or one of {' '.join(get_args(Kind))}, then as wanted "
            ",model= ,share= ,times= ,for_s= ,wait_s= ,retry_after="
        ) from error


def spoilt(script: Script, kind: Kind, wait_s: float, error_event: bytes) -> Script:
    """The script of a good reply, as this fault leaves it; the twists are in its words already."""
    match kind:
        case "hang" | "reset" | "down":
            beats: tuple[Beat, ...] = ()
        case "stall" | "cut" | "truncated":
            beats = _half(script)
        case "malformed":
            beats = _broken(script)
        case "error_event":
            beats = (*_half(script), Beat(0.0, error_event)) if len(script.beats) > 1 else _half(script)
        case "drip":
            beats = _drips(script, wait_s)
        case "html" | "empty":
            content_type, body = PAGES[kind]
            return replace(script, content_type=content_type, beats=(replace(script.beats[0], data=body),))
        case _:
            return script
    return replace(script, beats=beats, ending=ENDINGS.get(kind, "whole"))


def _over(armed: Armed) -> bool:
    return armed.until is not None and armed.until <= time.monotonic()


def _half(script: Script) -> tuple[Beat, ...]:
    if len(script.beats) > 1:
        return script.beats[: len(script.beats) // 2]
    return (_halved(script.beats[0]),)


def _halved(beat: Beat) -> Beat:
    return replace(beat, data=beat.data[: len(beat.data) // 2])


def _broken(script: Script) -> tuple[Beat, ...]:
    """Of a stream, half of the events and one whose JSON breaks off."""
    if len(script.beats) == 1:
        return _half(script)
    half = _half(script)
    return (*half, replace(_halved(half[-1]), data=_halved(half[-1]).data + b"\n\n"))


def _drips(script: Script, wait_s: float) -> tuple[Beat, ...]:
    data = b"".join(beat.data for beat in script.beats)
    size = -(-len(data) // DRIPS)
    return tuple(Beat(wait_s, data[at : at + size]) for at in range(0, len(data), size))
