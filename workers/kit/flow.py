"""How a pipeline is put together: a flow is a value, a list of nodes, `parallel(…)` and `route(…)`."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct

Node = Callable[..., Awaitable[Any]]


class Parallel(Struct, frozen=True):
    """Nodes that run at the same time, each seeing only what came before all of them."""

    nodes: tuple[Node, ...]


class Route(Struct, frozen=True):
    """A router gives a label; the branch of that label runs."""

    router: Node
    branches: Mapping[str, "Flow"]
    otherwise: "Flow | None" = None


Element = Node | Parallel | Route
Flow = Sequence[Element]


def parallel(*nodes: Node) -> Parallel:
    """Run `nodes` at the same time. The first to fail ends the step; its siblings are cancelled."""
    return Parallel(nodes)


def route(router: Node, branches: Mapping[str, Flow], otherwise: Flow | None = None) -> Route:
    """Run the branch whose label `router` returns, or `otherwise`.

    The router is an async function that returns a `Literal` of the labels (or `str`, with `otherwise`).
    """
    return Route(router, branches, otherwise)
