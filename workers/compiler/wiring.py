"""Which pipeline runs for which event: found in a package, checked whole, before anything is connected to."""

import math
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from types import ModuleType
from typing import Any

from msgspec import Struct, ValidationError, convert, json
from msgspec.structs import asdict

from schemas import Event
from schemas.catalog import Catalog, modules, type_name
from service.core.errors import WiringError
from workers.compiler.binding import bind, bind_body
from workers.compiler.graph import edges
from workers.compiler.plan import EVENT, RUN, Free, Plan, Takes
from workers.compiler.reading import bounds, gives, merge, states
from workers.kit.flow import where
from workers.kit.pipeline import Dollars, Pipeline, Retry, Seconds
from workers.kit.resources import given_by
from workers.kit.signature import check_body, hints_of, settings_of


class Wired(Struct, frozen=True):
    """A pipeline ready to run, under its name, with those that run after it.

    `needs_partition_key`: it surely takes an actor's state; of a free-form pipeline that is known when it runs.
    `upstream`: the type of what it is handed of the pipeline that it follows.
    """

    name: str
    type: str
    pipeline: Pipeline
    plan: Plan
    follow_ups: tuple["Wired", ...] = ()
    needs_partition_key: bool = False
    upstream: Any = None

    @property
    def family(self) -> list["Wired"]:
        """Itself, and all that follow it or each other."""
        return [self, *(wired for follow_up in self.follow_ups for wired in follow_up.family)]


Wiring = Mapping[str, Wired]


def wire(package: ModuleType, catalog: Catalog) -> Wiring:
    """By event type, the pipeline of each event in the catalog.

    Raises WiringError where an event has no pipeline or two, an option is out of bounds or a parameter can't be bound.
    """
    wired: dict[str, Wired] = {}
    declared = list(_declared(package))
    paths = {name: f"{module}.{name}" for module, name, _ in declared}
    for _, name, pipeline in declared:
        _check(paths[name], pipeline, [other for _, _, other in declared])
    for _, name, pipeline in declared:
        if pipeline.on is None:
            continue
        kind = type_name(pipeline.on)
        if kind not in catalog:
            raise WiringError(f'{paths[name]} is on "{kind}", which is not in schemas/events/. Put the event there.')
        if kind in wired:
            both = f"{paths[wired[kind].name]} and {paths[name]}"
            raise WiringError(f'{both} are both on "{kind}". An event has one pipeline.')
        wired[kind] = connected(name, kind, pipeline, {name: other for _, name, other in declared})
    if missing := sorted(set(catalog) - set(wired)):
        struct = catalog[missing[0]].struct
        raise WiringError(
            f'No pipeline is on "{missing[0]}", which {struct.__module__}.{struct.__name__} declares. '
            "Add one in workers/pipelines/, or take the event away."
        )
    known: dict[str, type[Struct]] = {}
    for member in everyone(wired):
        check_limits(paths[member.name], member.pipeline, member.plan)
        merge(known, states(member.plan))
    return wired


def connected(name: str, kind: str, pipeline: Pipeline, all_of_them: Mapping[str, Pipeline]) -> Wired:
    """A pipeline with its follow-ups, and theirs."""
    follow_ups = (
        connected(other, kind, child, all_of_them) for other, child in all_of_them.items() if child.after is pipeline
    )
    plan = compiled(pipeline)
    after_type = None if pipeline.after is None else gives(compiled(pipeline.after))
    return Wired(name, kind, pipeline, plan, tuple(follow_ups), bool(states(plan)), after_type)


def everyone(wiring: Wiring) -> list[Wired]:
    """Every pipeline, the follow-ups too."""
    return [wired for root in wiring.values() for wired in root.family]


def chosen(wiring: Wiring, kind: str, follow_up: str | None) -> Wired | None:
    """Who runs an event of this type: the pipeline on it, or of those behind it the one named."""
    root = wiring.get(kind)
    if root is None or follow_up is None:
        return root
    return next((wired for wired in root.family if wired.name == follow_up), None)


def compiled(pipeline: Pipeline) -> Plan:
    """What runs. Raises WiringError where a parameter can't be bound."""
    event = _event_of(pipeline)
    after_type = None if pipeline.after is None else gives(compiled(pipeline.after))
    if pipeline.body is None:
        return bind(pipeline.flow, event, pipeline.resources, after_type)
    takes: Takes = (RUN, EVENT, *settings_of(pipeline.body))
    return (Free(pipeline.body, takes) if pipeline.after is None else bind_body(pipeline.body, event, after_type),)


def _event_of(pipeline: Pipeline) -> type[Event]:
    if pipeline.after is not None:
        return _event_of(pipeline.after)
    assert pipeline.on is not None, "checked before"
    return pipeline.on


class _Options(Struct, frozen=True):
    retry: Retry
    timeout_s: Seconds
    budget_usd: Dollars | None


def _check(qualname: str, pipeline: Pipeline, declared: Sequence[Pipeline]) -> None:
    """A Struct's bounds hold where it is decoded, not where it is made."""
    if (pipeline.on is None) == (pipeline.after is None):
        raise WiringError(f"{qualname} is to be `on` an event or `after` a pipeline. Give it one of the two.")
    if pipeline.after is not None and not any(pipeline.after is other for other in declared):
        raise WiringError(
            f"{qualname} is after something that is no pipeline of workers/pipelines/. Name one of its values."
        )
    if pipeline.on is not None and not (isinstance(pipeline.on, type) and issubclass(pipeline.on, Event)):
        raise WiringError(f"{qualname} is on {pipeline.on!r}, which is no Event. Name the class.")
    if not isinstance(pipeline.retry, Retry):
        raise WiringError(f"{qualname}: retry is {pipeline.retry!r}. Write Retry(attempts=…).")
    check_resources(qualname, pipeline)
    if pipeline.body is not None and pipeline.on is not None:
        check_body(qualname, pipeline.body, pipeline.on)
    try:
        bounds = {"timeout_s": pipeline.timeout_s, "budget_usd": pipeline.budget_usd}
        convert({"retry": asdict(pipeline.retry), **bounds}, _Options)
    except ValidationError as error:
        raise WiringError(f"{qualname}: {error}.") from error


def graph(wired: Wired) -> tuple[str, str, str]:
    """(version, nodes, edges) of a pipeline as JSON, as `GET /pipelines/{name}` shows them."""
    nodes, arrows = edges(wired.plan)
    nodes_json = json.encode([{"name": name, "kind": kind} for name, kind in nodes])
    edges_json = json.encode([{"from": begin, "to": end, "label": label} for begin, end, label in arrows])
    return sha256(nodes_json + edges_json).hexdigest()[:12], nodes_json.decode(), edges_json.decode()


def _declared(package: ModuleType) -> Iterator[tuple[str, str, Pipeline]]:
    """(module, name, pipeline), each once, also where another module imports it."""
    seen: dict[str, tuple[str, Pipeline]] = {}
    for module in modules(package):
        for name, value in vars(module).items():
            if not isinstance(value, Pipeline) or name.startswith("_"):
                continue
            if any(value is other for _, other in seen.values()):
                continue
            if name in seen:
                raise WiringError(f"{seen[name][0]} and {module.__name__} both call a pipeline `{name}`. Rename one.")
            seen[name] = (module.__name__, value)
            yield module.__name__, name, value


def check_limits(qualname: str, pipeline: Pipeline, plan: Plan) -> None:
    """Raises WiringError where a limit is no number of seconds, or of a node that the flow has not."""
    if not isinstance(pipeline.limits_s, Mapping):
        raise WiringError(f"{qualname}: limits_s is no dict. Write {{node: seconds, …}}.")
    there = (
        None if pipeline.body is not None else {bound.node for bound in bounds(plan)}
    )  # what a free form runs shows when it runs
    for node, limit_s in pipeline.limits_s.items():
        hints_of(node)
        if there is not None and node not in there:
            raise WiringError(
                f"{qualname}: limits_s names {where(node)}, which is not in its flow. Put it there, or take it away."
            )
        if not isinstance(limit_s, int | float) or isinstance(limit_s, bool) or not 0 < limit_s < math.inf:
            raise WiringError(f"{qualname}: limits_s gives {where(node)} {limit_s!r}. Give seconds, more than 0.")


def check_resources(qualname: str, pipeline: Pipeline) -> None:
    if not isinstance(pipeline.resources, list | tuple):
        raise WiringError(f"{qualname}: resources is no list. Write [{where(pipeline.resources)}].")
    for resource in pipeline.resources:
        given_by(resource)
