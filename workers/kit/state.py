"""What an actor remembers: a Struct per key, loaded when a step first takes it, written with the event's end."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar, get_args, get_origin

from msgspec import NODEFAULT, Raw, Struct, ValidationError, json
from msgspec.structs import fields

from service.core.errors import Outage, Reject, WiringError
from workers.kit.memory import Facts
from workers.kit.round_trip import Unstorable, round_trip

S = TypeVar("S", bound=Struct)

STATE_MAX: Final = 262_144
UNREADABLE_S: Final = 10.0
NO_KEY: Final = "keeps state by key, and the event has none: send it with a `partitionkey`"

Load = Callable[[], Awaitable[Mapping[str, Raw]]]
"""Reads what is stored for the run's key, by type. Raises Reject where the event has none."""


async def no_states() -> Mapping[str, Raw]:
    return {}


class State(Generic[S]):
    """A node's `state: State[Conversation]`: `value`, the Struct's defaults for a new key, and `set` for a new one."""

    def __init__(self, value: S) -> None:
        self._value = value
        self._encoded: Raw | None = None

    @property
    def value(self) -> S:
        return self._value

    def set(self, new: S) -> None:
        """Kept with the end of the event, and seen by the steps behind this one.

        Raises Reject where it is larger than STATE_MAX bytes or could not be read back.
        """
        kind = type(self._value)
        if type(new) is not kind:
            raise Reject(f"the state {kind.__name__} was set to a {type(new).__name__}")
        try:
            encoded, value = round_trip(f"the state {kind.__name__}", new, json.Decoder(kind))
        except Unstorable as error:
            raise Reject(str(error)) from error
        if len(encoded) > STATE_MAX:
            raise Reject(f"the state {kind.__name__} has {len(encoded)} bytes, {STATE_MAX} may be kept. Keep less.")
        self._value, self._encoded = value, Raw(encoded)


class Taken(Struct, frozen=True):
    """Stands among a step's arguments for the State that is put there when the step starts."""

    kind: type[Struct]


def taken(hint: Any, where: str) -> Taken | None:
    """What a parameter with this annotation takes, where it is a State. Raises WiringError where that can't be kept."""
    if hint is not State and get_origin(hint) is not State:
        return None
    kind = next(iter(get_args(hint)), None)
    if not (isinstance(kind, type) and issubclass(kind, Struct) and kind.__struct_config__.frozen):
        raise WiringError(f"{where} takes {hint}: write State[…] of a frozen msgspec Struct.")
    bare = [field.name for field in fields(kind) if field.default is NODEFAULT and field.default_factory is NODEFAULT]
    if bare:
        raise WiringError(f"{where}: {kind.__name__}.{bare[0]} has no default, which a new key's state begins with.")
    return Taken(kind)


async def open_states(arguments: Sequence[Any], facts: Facts, load: Load) -> list[Any]:
    """The arguments with their States put in. One step at a time has a state in hand."""
    wanted = {argument.kind.__name__: argument.kind for argument in arguments if isinstance(argument, Taken)}
    if not wanted:
        return list(arguments)
    if facts.states is None:
        facts.states = await load()
    stored = facts.states
    if busy := facts.in_hand & wanted.keys():
        raise Reject(f"two steps side by side take the state {min(busy)}. Let one follow the other.")
    opened = {name: State(_read(kind, facts.new_states.get(name) or stored.get(name))) for name, kind in wanted.items()}
    facts.in_hand |= wanted.keys()
    return [opened[argument.kind.__name__] if isinstance(argument, Taken) else argument for argument in arguments]


def _read(kind: type[S], stored: Raw | None) -> S:
    try:
        return kind() if stored is None else json.decode(stored, type=kind)
    except ValidationError as error:
        message = f"the stored state {kind.__name__} can't be read by this worker's release: {error}"
        raise Outage(message, UNREADABLE_S) from error


def close_states(arguments: Sequence[Any], facts: Facts) -> None:
    facts.in_hand -= {type(argument.value).__name__ for argument in arguments if isinstance(argument, State)}


def set_states(states: "Sequence[State[Any]]") -> dict[str, Raw]:
    """What a step set, by type."""
    return {type(state.value).__name__: state._encoded for state in states if state._encoded is not None}
