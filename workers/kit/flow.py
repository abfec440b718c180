"""How a pipeline is put together: a flow is a value, a list of nodes, `parallel(…)`, `each(…)` and `route(…)`."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

Node = Callable[..., Awaitable[Any]]


AT_ONCE: Final = 10
OTHERWISE: Final = "otherwise"


class Stop(Struct, frozen=True):
    """A node that returns this ends its flow; `result` is the pipeline's. Declare it: `-> Triage | Stop`."""

    result: Any = None


class Parallel(Struct, frozen=True):
    """Members that run at the same time, each seeing only what came before all of them."""

    members: "tuple[Element | Flow, ...]"
    at_once: int
    collect: bool


class Each(Struct, frozen=True):
    """A node for every item of a list from upstream."""

    node: Node
    at_once: int
    collect: bool


class Route(Struct, frozen=True):
    """A router gives a label; the branch of that label runs."""

    router: Node
    branches: Mapping[str, "Flow"]
    otherwise: "Flow | None" = None


Element = Node | Parallel | Each | Route
Flow = Sequence[Element]


def parallel(*members: Element | Flow, at_once: int = AT_ONCE, collect: bool = False) -> Parallel:
    """Run nodes, flows (lists) or other elements side by side, `at_once` of them at a time.

    The first to fail ends it and its siblings; with `collect` all run to their end, and one that failed by itself gives
    None: what takes its result asks for `T | None`. An outage and a Reject end it all the same.
    """
    return Parallel(members, at_once, collect)


def each(node: Node, at_once: int = AT_ONCE, collect: bool = False) -> Each:
    """Run `node` for every item of a list, `at_once` at a time; it gives the list of what they give, in that order.

    The list is the nearest one upstream of the type of a parameter of `node`. With `collect` an item that failed by
    itself gives None: it is a `list[T | None]`.
    """
    return Each(node, at_once, collect)


def route(router: Node, branches: Mapping[str, Flow], otherwise: Flow | None = None) -> Route:
    """Run the branch whose label `router` returns, or `otherwise`.

    The router is an async function that returns a `Literal` of the labels (or `str`, with `otherwise`).
    """
    return Route(router, branches, otherwise)


def where(node: Any) -> str:
    """The place of a node, or of what stands where one should, for people."""
    return f"{getattr(node, '__module__', '?')}.{getattr(node, '__name__', node)}"
