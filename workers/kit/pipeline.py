"""A pipeline: what runs for an event type."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Final, Protocol, TypedDict, TypeVar, Unpack, overload

from msgspec import Meta, Struct

from schemas import Event
from workers.kit.flow import Flow, Node
from workers.kit.resources import Open
from workers.kit.run import Run
from workers.kit.settings import Settings

E = TypeVar("E", bound=Event, covariant=True)
C = TypeVar("C", bound=Settings)
Body = Callable[..., Awaitable[Any]]

Seconds = Annotated[float, Meta(gt=0)]
Dollars = Annotated[float, Meta(gt=0)]


class Retry(Struct, frozen=True):
    """Exponential backoff with full jitter: the n-th wait is uniform up to `base_s` · 2^n, at most `cap_s`."""

    attempts: Annotated[int, Meta(ge=1)] = 5
    base_s: Seconds = 1.0
    cap_s: Seconds = 300.0


RETRY: Final = Retry()
NO_LIMITS: Final[Mapping[Node, float]] = MappingProxyType({})


class Pipeline(Struct, frozen=True):
    """Runs `flow` for every event of type `on`, or for each that `after` succeeded with, at most `timeout_s` long.

    `budget_usd` bounds what the calls of a run cost, `limits_s` single nodes. `resources` are `@asynccontextmanager`
    functions, each opened once per worker: nodes take what it gives by its type. The name, shown to operators, is that
    of the module variable it is assigned to. `body` is what `@pipeline` wraps.
    """

    on: type[Event] | None = None
    flow: Flow = ()
    retry: Retry = RETRY
    timeout_s: Seconds = 120.0
    budget_usd: Dollars | None = None
    limits_s: Mapping[Node, float] = NO_LIMITS
    resources: Sequence[Open] = ()
    body: Node | None = None
    after: "Pipeline | None" = None


class Options(TypedDict, total=False):
    """What `@pipeline` takes besides, as Pipeline does."""

    retry: Retry
    timeout_s: float
    budget_usd: float | None
    limits_s: Mapping[Node, float]
    resources: Sequence[Open]


class Wrap(Protocol[E]):
    """Makes a pipeline of a body that takes the run, an event of this type and, if it likes, Settings."""

    @overload
    def __call__(self, body: Callable[[Run, E], Awaitable[Any]], /) -> Pipeline: ...

    @overload
    def __call__(self, body: Callable[[Run, E, C], Awaitable[Any]], /) -> Pipeline: ...


@overload
def pipeline(*, on: type[E], **options: Unpack[Options]) -> Wrap[E]: ...


@overload
def pipeline(*, after: Pipeline, **options: Unpack[Options]) -> Callable[[Body], Pipeline]: ...


def pipeline(**options: Any) -> Callable[[Body], Pipeline]:
    """The free form, for what a flow can't say (loops, critics that send back).

    `@pipeline(on=TicketOpened) async def support(run, ticket)` runs its nodes by `await run.step(node, …)`, and between
    steps decides only by its arguments and by what steps gave: then a retry finds every step again. Of `run` it has
    `step`, `resource`, `outside`, `now`, `random` and `uuid`; models, posts, documents and events are for nodes. Behind
    `after`, its parameters are bound by type, as a node's are: the run, the event, what the other pipeline gave.
    """

    def wrap(body: Body) -> Pipeline:
        return Pipeline(**options, body=body)

    return wrap
