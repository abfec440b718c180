"""How a pipeline is put together: a flow is a value, a list of nodes, `parallel(…)`, `each(…)` and `route(…)`."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

Node = Callable[..., Awaitable[Any]]


EACH_AT_ONCE: Final = 10


class Stop(Struct, frozen=True):
    """A node that returns this ends its flow; `result` is the pipeline's. Declare it: `-> Triage | Stop`."""

    result: Any = None


class Parallel(Struct, frozen=True):
    """Nodes that run at the same time, each seeing only what came before all of them."""

    nodes: tuple[Node, ...]


class Each(Struct, frozen=True):
    """A node for every item of a list from upstream."""

    node: Node
    at_once: int


class Route(Struct, frozen=True):
    """A router gives a label; the branch of that label runs."""

    router: Node
    branches: Mapping[str, "Flow"]
    otherwise: "Flow | None" = None


Element = Node | Parallel | Each | Route
Flow = Sequence[Element]


def parallel(*nodes: Node) -> Parallel:
    """Run `nodes` at the same time. The first to fail ends the step; its siblings are cancelled."""
    return Parallel(nodes)


def each(node: Node, at_once: int = EACH_AT_ONCE) -> Each:
    """Run `node` for every item of a list, `at_once` at a time; it gives the list of what they give, in that order.

    The list is the nearest one upstream of the type of a parameter of `node`.
    """
    return Each(node, at_once)


def route(router: Node, branches: Mapping[str, Flow], otherwise: Flow | None = None) -> Route:
    """Run the branch whose label `router` returns, or `otherwise`.

    The router is an async function that returns a `Literal` of the labels (or `str`, with `otherwise`).
    """
    return Route(router, branches, otherwise)
