"""What a node's signature says, and what is wrong with it."""

import inspect
from collections.abc import Awaitable, Mapping, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any, Final, Literal, Never, NoReturn, Union, get_args, get_origin, get_type_hints

from msgspec import json

from schemas import Event
from service.core.errors import WiringError
from workers.kit.flow import OTHERWISE, Node, Route, Stop, where
from workers.kit.settings import SettingsSlot, slot_of
from workers.kit.state import taken

NODES_MAX: Final = 4_096
"""So many nodes are remembered; a free form may make nodes while it runs."""
ANYTHING: Final = json.Decoder()


def hints_of(node: Node) -> dict[str, Any]:
    if not inspect.iscoroutinefunction(node) or not hasattr(node, "__name__"):
        raise WiringError(f"{where(node)} is no async function. A node is written `async def`.")
    return annotations_of(node)


def annotations_of(node: Node) -> dict[str, Any]:
    """The types of its parameters and of what it returns."""
    try:
        hints = get_type_hints(node)
    except NameError as error:
        raise WiringError(f"{where(node)}: {error}. Import the type where the node's module can see it.") from error
    if "return" not in hints:
        raise _says_nothing(node)
    return hints


def call(node: Node, arguments: Sequence[Any], named: Mapping[str, Any] | None = None) -> Awaitable[Any]:
    """What is to be awaited of a node, or of the body of a pipeline.

    Raises WiringError where its signature can't take the arguments, or it is no async function. A TypeError that its
    own code raises stays one.
    """
    named = named or {}
    try:
        running = node(*arguments, **named)
    except TypeError as error:
        if (misfit := _misfit(node, arguments, named)) is None:
            raise
        raise WiringError(f"{where(node)} can't be called as it is: {misfit}. Mend its parameters.") from error
    if not inspect.isawaitable(running):
        raise WiringError(f"{where(node)} is no async function. Write `async def`.")
    return running


def _misfit(node: Node, arguments: Sequence[Any], named: Mapping[str, Any]) -> str | None:
    """What of these arguments the signature can't take."""
    try:
        inspect.signature(node).bind(*arguments, **named)
    except TypeError as error:
        return str(error)
    except ValueError:  # a callable written in C, which says nothing of its parameters
        return None
    return None


def check_body(qualname: str, body: Node, event: type[Any]) -> None:
    """A body of `@pipeline(on=…)` is called with the run and the event.

    Raises WiringError where it can't be, is a generator, or names other types of them.
    """
    if inspect.isasyncgenfunction(body) or inspect.isgeneratorfunction(body):
        raise WiringError(
            f"{qualname} has a `yield` in its body. A pipeline is an async function that returns its result."
        )
    if (misfit := _misfit(body, ("run", "event", *settings_of(body)), {})) is not None:
        raise WiringError(f"{qualname} can't be called with the run and the event: {misfit}. Write `(run, event)`.")
    hints = _hints_if_any(body)
    wanted = [hints.get(name) for name in list(inspect.signature(body).parameters)[:2]]
    events = [kind if isinstance(kind, type) and issubclass(kind, Event) else None for kind in wanted]
    if len(events) == 2 and (events[0] is not None or (events[1] is not None and not issubclass(event, events[1]))):
        raise WiringError(f"{qualname} is on {event.__name__}. Write `(run: Run, event: {event.__name__})`.")


def settings_of(body: Node) -> tuple[SettingsSlot, ...]:
    """The Settings that a body of `@pipeline(on=…)` takes behind the run and the event."""
    hints = _hints_if_any(body)
    behind = [slot_of(hints.get(name)) for name in list(inspect.signature(body).parameters)[2:]]
    return tuple(slot for slot in behind if slot is not None)


def _hints_if_any(body: Node) -> dict[str, Any]:
    try:
        return get_type_hints(body)
    except (NameError, TypeError, AttributeError):  # what can't be resolved is for the type checker to say
        return {}


def returns(node: Node) -> Any:
    """What a node gives to those behind it: not the Stop that nobody is behind. Raises as `decoder_of` does."""
    hints_of(node)
    decoder_of(node)
    return returned(node)


def returned(node: Node) -> Any:
    """What a node says it returns, but for the Stop that ends a flow."""
    returns = annotations_of(node)["return"]
    left = [kind for kind in get_args(returns) if kind is not Stop]
    return Union[tuple(left)] if Stop in get_args(returns) and left else returns  # noqa: UP007 - made, not written


@lru_cache(NODES_MAX)
def decoder_of(node: Node) -> json.Decoder[Any]:
    """Reads a node's result back as what it says it returns.

    Raises WiringError where it does not say, or says what can't be read back: a union of Structs without a tag.
    """
    kind = returned(node)
    try:
        return ANYTHING if kind in (NoReturn, Never) else json.Decoder(kind)
    except TypeError as error:
        raise WiringError(f"{where(node)} returns what can't be stored and read back: {error}.") from error


@lru_cache(NODES_MAX)
def put_in(node: Node, run: type) -> list[Any]:
    """What a node takes before the arguments that a free form passes: the Run, whose type is `run`, then Settings and
    States."""
    hints = [hint for name, hint in annotations_of(node).items() if name != "return"]
    before: list[Any] = [run] if hints[:1] == [run] else []
    put = (slot_of(hint) or taken(hint, where(node)) for hint in hints[len(before) :])
    return [*before, *takewhile(lambda handle: handle is not None, put)]


def _says_nothing(node: Node) -> WiringError:
    return WiringError(f"{where(node)} does not say what it returns. Annotate it, `-> None` where it returns nothing.")


def check_labels(element: Route) -> None:
    qualname, returned = where(element.router), hints_of(element.router)["return"]
    labels = set(get_args(returned)) if get_origin(returned) is Literal else set()
    if not isinstance(element.branches, Mapping):
        raise WiringError(f"{qualname}: the branches of its route are no dict. Write {{label: [nodes], …}}.")
    branches = set(element.branches)
    if OTHERWISE in branches and element.otherwise is not None:
        raise WiringError(f'{qualname}: a label is called "{OTHERWISE}", as the rest is. Rename it.')
    if not labels and element.otherwise is None:
        raise WiringError(
            f"{qualname} is a router: let it return Literal[…] of its labels, or give the route `otherwise`."
        )
    if labels and (unknown := branches - labels):
        raise WiringError(f"{qualname} never returns {_list(unknown)}. Its labels are {_list(labels)}.")
    if labels - branches and element.otherwise is None:
        raise WiringError(
            f"{qualname} may return {_list(labels - branches)}, which has no branch. Add it, or `otherwise`."
        )


def check_at_once(qualname: str, at_once: int) -> None:
    if not isinstance(at_once, int) or isinstance(at_once, bool) or at_once < 1:
        raise WiringError(f"{qualname}: at_once is {at_once!r}. Give a whole number from 1 up.")


def _list(labels: set[Any]) -> str:
    return ", ".join(f'"{label}"' for label in sorted(labels, key=str))
