"""Which pipeline runs for which event: found in a package, checked whole, before anything is connected to."""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from types import ModuleType

from msgspec import Struct, ValidationError, convert, json
from msgspec.structs import asdict

from schemas import Event
from schemas.catalog import Catalog, modules, type_name
from service.errors import WiringError
from workers.kit.binding import bind
from workers.kit.checks import check_limits, check_resources
from workers.kit.drawing import edges
from workers.kit.pipeline import Pipeline, Retry, Seconds
from workers.kit.plan import Free, Plan


class Wired(Struct, frozen=True):
    """A pipeline ready to run, under its name."""

    name: str
    type: str
    pipeline: Pipeline
    plan: Plan


Wiring = Mapping[str, Wired]


def wire(package: ModuleType, catalog: Catalog) -> Wiring:
    """By event type, the pipeline of each event in the catalog.

    Raises WiringError where an event has no pipeline or two, an option is out of bounds or a parameter can't be bound.
    """
    wired: dict[str, Wired] = {}
    places: dict[str, str] = {}
    for module, name, pipeline in _declared(package):
        place = f"{module}.{name}"
        _check(place, pipeline)
        kind = type_name(pipeline.on)
        if kind not in catalog:
            raise WiringError(f'{place} is on "{kind}", which is not in schemas/events/. Put the event there.')
        if kind in wired:
            raise WiringError(f'{places[kind]} and {place} are both on "{kind}". An event has one pipeline.')
        places[kind] = place
        plan = compiled(pipeline)
        check_limits(place, pipeline, plan)
        wired[kind] = Wired(name, kind, pipeline, plan)
    if missing := sorted(set(catalog) - set(wired)):
        struct = catalog[missing[0]].struct
        raise WiringError(
            f'No pipeline is on "{missing[0]}", which {struct.__module__}.{struct.__name__} declares. '
            "Add one in workers/pipelines/, or take the event away."
        )
    return wired


def compiled(pipeline: Pipeline) -> Plan:
    """What runs. Raises WiringError where a parameter can't be bound."""
    if pipeline.body is not None:
        return (Free(pipeline.body),)
    return bind(pipeline.flow, pipeline.on, pipeline.resources)


class _Options(Struct, frozen=True):
    retry: Retry
    timeout_s: Seconds


def _check(place: str, pipeline: Pipeline) -> None:
    """A Struct's bounds hold where it is decoded, not where it is made."""
    if not (isinstance(pipeline.on, type) and issubclass(pipeline.on, Event)):
        raise WiringError(f"{place} is on {pipeline.on!r}, which is no Event. Name the class.")
    if not isinstance(pipeline.retry, Retry):
        raise WiringError(f"{place}: retry is {pipeline.retry!r}. Write Retry(attempts=…).")
    check_resources(place, pipeline)
    try:
        convert({"retry": asdict(pipeline.retry), "timeout_s": pipeline.timeout_s}, _Options)
    except ValidationError as error:
        raise WiringError(f"{place}: {error}.") from error


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
