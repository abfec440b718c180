"""Entries of the journal: made when a step completes, stored with all before it, read in the place of the step."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Any

from msgspec import MsgspecError, Raw, json

from service.core.errors import WiringError
from service.core.time_limit import our_wait
from workers.kit.emit import count
from workers.kit.flow import Node, Stop, where
from workers.kit.memory import Effects, Entry, Facts, JournalMismatch, Kept
from workers.kit.ordered import ordered
from workers.kit.record import check_size, failed, note
from workers.kit.round_trip import Unstorable, encode, round_trip
from workers.kit.signature import ANYTHING, decoder_of
from workers.kit.state import State, set_states


def name_of(node: Node, arguments: Sequence[Any], named: Mapping[str, Any]) -> str:
    """A free-form step's key, but for its number: the node, and a hash of its arguments that every process agrees on.

    Raises WiringError where an argument is of a type that has no JSON, Unstorable where its value has none.
    """
    values = ordered([list(arguments), dict(sorted(named.items()))])
    try:
        encoded = encode(f"the arguments of {where(node)}", values)
    except Unstorable as error:
        if not isinstance(error.__cause__, TypeError):
            raise
        raise WiringError(
            f"run.step({where(node)}, …): an argument can't be part of the step's key ({error}). "
            "Hand over what JSON can say, or name a resource in the pipeline's `resources`."
        ) from error
    return f"{node.__name__}:{blake2b(encoded, digest_size=6).hexdigest()}"


def entry_of(
    step_key: str, node: Node, result: Any, arguments: Sequence[Any], effects: Effects, size_max: int
) -> tuple[Entry, Any]:
    """The entry of a step that completed, and what goes on of its result: what the journal would give back.

    Raises Unstorable where that is not the same, TooLarge where it has more than `size_max` bytes.
    """
    what = f"the result of step {step_key}"
    if isinstance(result, Stop):
        encoded, value = round_trip(what, result.result, ANYTHING)
        goes_on: Any = Stop(value)
    else:
        encoded, goes_on = round_trip(what, result, decoder_of(node))
    check_size(what, len(encoded), size_max)
    states = [argument for argument in arguments if isinstance(argument, State)]
    stopped = isinstance(result, Stop)
    entry = Entry(Raw(encoded), stopped, effects.documents, effects.children, set_states(states), bool(states))
    return entry, goes_on


def complete(facts: Facts, step_key: str, at: datetime, own: Entry, effects: Effects, outer: Effects) -> None:
    """The step's entry, with the effects of the steps within it, waits to be stored; the step around it takes it in."""
    entry = own.around(effects.inner)
    outer.take_in(entry)
    facts.keep(Kept(step_key, at, json.encode(entry), entry.took_state, bool(entry.children)))
    facts.progress = True
    facts.ask(own)


def replay(facts: Facts, step_key: str, node: Node, stored: Raw, outer: Effects) -> Any:
    """The result of a step that the journal has. Raises JournalMismatch where the node returns another type by now."""
    decoder = decoder_of(node)
    try:
        entry = json.decode(stored, type=Entry)
        result = Stop(ANYTHING.decode(entry.result)) if entry.stopped else decoder.decode(entry.result)
    except MsgspecError as error:
        fault = f"what the journal has of step {step_key} is no {decoder.type} any more ({error})."
        misfit = JournalMismatch(f"{fault} Replay from that step.")
        failed(facts, step_key, facts.now(), 0.0, misfit)
        raise misfit from error
    for child in entry.children:
        count(facts, child)
    outer.take_in(entry)
    facts.ask(entry)
    note(facts, step_key, facts.now(), 0.0, "replayed")
    return result


async def store(facts: Facts, keep: Callable[[Sequence[Kept]], Awaitable[None]]) -> None:
    """Stores all completed steps that are not stored yet, or none of them: what is stored never hangs on what is not.

    One at a time, in the order in which steps completed: a second call waits for the first, whose entries it may need.
    """
    if not facts.unstored:
        return
    if facts.storing is None:
        facts.storing = asyncio.Lock()
    with our_wait():  # for the commit of another branch, too
        async with facts.storing:
            if entries := list(facts.unstored):
                await keep(entries)
                facts.stored(len(entries))
