"""Which pipeline runs for which event: found in a package, checked whole, before anything is connected to."""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from types import ModuleType

from msgspec import Struct, json

from schemas.catalog import Catalog, modules, type_name
from service.errors import WiringError
from workers.kit.binding import bind
from workers.kit.pipeline import Pipeline
from workers.kit.plan import Plan, edges


class Wired(Struct, frozen=True):
    """A pipeline ready to run, under its name."""

    name: str
    type: str
    pipeline: Pipeline
    plan: Plan


Wiring = Mapping[str, Wired]


def wire(package: ModuleType, catalog: Catalog) -> Wiring:
    """By event type, the pipeline of each event in the catalog.

    Raises WiringError where an event has no pipeline or two, or where a parameter can't be bound.
    """
    wired: dict[str, Wired] = {}
    for name, pipeline in _declared(package):
        kind = type_name(pipeline.on)
        if kind not in catalog:
            raise WiringError(f'Pipeline {name} is on "{kind}", which is not in schemas/events/. Put the event there.')
        if kind in wired:
            raise WiringError(
                f'Pipelines {wired[kind].name} and {name} are both on "{kind}". An event has one pipeline.'
            )
        wired[kind] = Wired(name, kind, pipeline, bind(pipeline.flow, pipeline.on))
    if missing := sorted(set(catalog) - set(wired)):
        raise WiringError(f'No pipeline is on "{missing[0]}". Add one in workers/pipelines/, or take the event away.')
    return wired


def graph(wired: Wired) -> tuple[str, str, str]:
    """(version, nodes, edges) of a pipeline as JSON, as `GET /pipelines/{name}` shows them."""
    nodes, arrows = edges(wired.plan)
    nodes_json = json.encode([{"name": name, "kind": kind} for name, kind in nodes])
    edges_json = json.encode([{"from": begin, "to": end, "label": label} for begin, end, label in arrows])
    return sha256(nodes_json + edges_json).hexdigest()[:12], nodes_json.decode(), edges_json.decode()


def _declared(package: ModuleType) -> Iterator[tuple[str, Pipeline]]:
    seen: dict[str, str] = {}
    for module in modules(package):
        for name, value in vars(module).items():
            if not isinstance(value, Pipeline) or name.startswith("_"):
                continue
            if name in seen:
                raise WiringError(f"{seen[name]} and {module.__name__} both call a pipeline `{name}`. Rename one.")
            seen[name] = module.__name__
            yield name, value
