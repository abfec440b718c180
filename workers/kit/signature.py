"""What a node's signature says, and what is wrong with it."""

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from service.errors import WiringError
from workers.kit.flow import OTHERWISE, Node, Route, Stop, where


def hints_of(node: Node) -> dict[str, Any]:
    if not inspect.iscoroutinefunction(node) or not hasattr(node, "__name__"):
        raise WiringError(f"{where(node)} is no async function. A node is written `async def`.")
    try:
        hints = get_type_hints(node)
    except NameError as error:
        raise WiringError(f"{where(node)}: {error}. Import the type where the node's module can see it.") from error
    if "return" not in hints:
        raise WiringError(
            f"{where(node)} does not say what it returns. Annotate it, `-> None` where it returns nothing."
        )
    return hints


def returns(node: Node) -> Any:
    """What a node gives to those behind it: not the Stop that nobody is behind."""
    hints_of(node)
    return returned(node)


@cache
def returned(node: Node) -> Any:
    """What a node says it returns, but for the Stop that ends a flow."""
    returns = get_type_hints(node)["return"]
    left = [each for each in get_args(returns) if each is not Stop]
    return Union[tuple(left)] if Stop in get_args(returns) and left else returns  # noqa: UP007 - made, not written


def check_labels(element: Route) -> None:
    place, given = where(element.router), hints_of(element.router)["return"]
    labels = set(get_args(given)) if get_origin(given) is Literal else set()
    if not isinstance(element.branches, Mapping):
        raise WiringError(f"{place}: the branches of its route are no dict. Write {{label: [nodes], …}}.")
    branches = set(element.branches)
    if OTHERWISE in branches and element.otherwise is not None:
        raise WiringError(f'{place}: a label is called "{OTHERWISE}", as the rest is. Rename it.')
    if not labels and element.otherwise is None:
        raise WiringError(
            f"{place} is a router: let it return Literal[…] of its labels, or give the route `otherwise`."
        )
    if labels and (unknown := branches - labels):
        raise WiringError(f"{place} never returns {_list(unknown)}. Its labels are {_list(labels)}.")
    if labels - branches and element.otherwise is None:
        raise WiringError(
            f"{place} may return {_list(labels - branches)}, which has no branch. Add it, or `otherwise`."
        )


def check_at_once(place: str, at_once: int) -> None:
    if not isinstance(at_once, int) or isinstance(at_once, bool) or at_once < 1:
        raise WiringError(f"{place}: at_once is {at_once!r}. Give a whole number from 1 up.")


def _list(labels: set[Any]) -> str:
    return ", ".join(f'"{label}"' for label in sorted(labels, key=str))
